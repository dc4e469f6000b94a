// Attention.
#include "../cpu/attention.hpp"

#include "primitives.hpp"
#include "slabs.hpp"

namespace mlx_serving {
namespace {

// Inputs: queries, the arrays of keys, those of values; over slabs also lengths, otherwise every row has all columns.
class Attention : public CpuPrimitive {
 public:
  Attention(mx::Stream stream, SlabForm form, bool has_lengths, float scale, bool causal)
      : CpuPrimitive(stream), form_(form), has_lengths_(has_lengths), scale_(scale), causal_(causal) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    mx::array queries = dense_last_axis(inputs[0], encoder);
    const mx::array& first = inputs[1];
    cpu::AttentionShape shape{queries.shape(0), queries.shape(1), first.shape(1), queries.shape(2), queries.shape(3),
                              first.shape(2)};
    cpu::Slab keys = slab_to_read(inputs, 1, form_, encoder);
    cpu::Slab values = slab_to_read(inputs, 1 + form_.arrays(), form_, encoder);
    allocate_by_token(outputs[0]);
    void* out = outputs[0].data<void>();
    const int* lengths = nullptr;
    if (has_lengths_) lengths = contiguous_input(inputs.back(), encoder).data<int>();
    encoder.dispatch([shape, source = heads_of(queries), keys, values, lengths, scale = scale_, causal = causal_, out] {
      std::vector<int> all(size_t(shape.rows), int(shape.capacity));
      std::vector<int> safe = lengths ? cpu::clamped(lengths, shape, 0) : all;
      cpu::attend(shape, source, keys, values, safe.data(), scale, causal, out);
    });
  }
  const char* name() const override { return "mlx_serving::Attention"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    auto& o = static_cast<const Attention&>(other);
    return form_ == o.form_ && has_lengths_ == o.has_lengths_ && scale_ == o.scale_ && causal_ == o.causal_;
  }

 private:
  SlabForm form_;
  bool has_lengths_;
  float scale_;
  bool causal_;
};

// Inputs: queries, new keys and values, the arrays of both slabs, lengths.
class AttendInPlace : public CpuPrimitive {
 public:
  AttendInPlace(mx::Stream stream, SlabForm form, float scale) : CpuPrimitive(stream), form_(form), scale_(scale) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    mx::array queries = dense_last_axis(inputs[0], encoder);
    mx::array keys = dense_last_axis(inputs[1], encoder), values = dense_last_axis(inputs[2], encoder);
    const int* lengths = contiguous_input(inputs.back(), encoder).data<int>();
    cpu::AttentionShape shape{queries.shape(0), queries.shape(1), keys.shape(1), queries.shape(2), queries.shape(3),
                              inputs[3].shape(2)};
    cpu::Slab slab_keys = slab_to_write(inputs, 3, form_, encoder);
    cpu::Slab slab_values = slab_to_write(inputs, 3 + form_.arrays(), form_, encoder);
    allocate_by_token(outputs[0]);
    encoder.dispatch([shape, source = heads_of(queries), new_keys = heads_of(keys), new_values = heads_of(values),
                      slab_keys, slab_values, lengths, scale = scale_, out = outputs[0].data<void>()] {
      cpu::attend_in_place(shape, source, new_keys, new_values, slab_keys, slab_values, lengths, scale, out);
    });
  }
  const char* name() const override { return "mlx_serving::AttendInPlace"; }
  // Writing is not repeatable: two calls are never one.
  bool is_equivalent(const mx::Primitive&) const override { return false; }

 private:
  SlabForm form_;
  float scale_;
};

void check_heads(const mx::array& queries, const mx::array& keys, const mx::array& values) {
  type_of(queries, "queries");
  require(queries.ndim() == 4 && keys.ndim() == 4 && values.ndim() == 4,
          "queries, keys and values must be [rows, heads, tokens, size]");
  require(keys.shape(1) > 0 && queries.shape(1) % keys.shape(1) == 0 && keys.shape(1) == values.shape(1),
          "the heads of queries must be a multiple of those of keys and values");
  require(queries.shape(3) % 16 == 0 && queries.shape(3) > 0, "the size of a head must be a multiple of 16");
  require(queries.size() > 0, "queries are empty");
}

void check_slabs(const mx::array& queries, const mx::array& keys, const mx::array& values) {
  check_heads(queries, keys, values);
  type_of(keys, "keys");
  require(keys.shape() == values.shape() && keys.dtype() == values.dtype(), "keys and values must be alike");
  require(keys.shape(3) == queries.shape(3), "keys " + shape_text(keys) + " do not fit queries " + shape_text(queries));
  require(keys.shape(2) >= queries.shape(2), "there are fewer columns than queries");
}

void check_lengths(const mx::array& lengths, const mx::array& queries, const mx::array& keys) {
  require(lengths.dtype() == mx::int32 && lengths.ndim() == 1 && lengths.shape(0) == queries.shape(0),
          "lengths must be int32, one a row");
  require(keys.shape(0) >= queries.shape(0), "there are fewer slots than rows");
}

// New keys and values of the slabs' own heads, of type `dtype`.
void check_new(const mx::array& queries, const mx::array& keys, const mx::array& values, const mx::array& slab,
               mx::Dtype dtype) {
  require(keys.ndim() == 4 && keys.shape() == values.shape() && keys.shape(0) == queries.shape(0) &&
              keys.shape(1) == slab.shape(1) && keys.shape(2) == queries.shape(2) && keys.shape(3) == queries.shape(3),
          "new keys " + shape_text(keys) + " do not fit queries " + shape_text(queries));
  require(keys.dtype() == dtype && values.dtype() == dtype, "new keys and values must be of the slabs' type");
}

void check_quantized_slabs(const mx::array& queries, const Side& keys, const Side& values, const mx::array& lengths,
                           SlabForm form) {
  require(!keys.empty() && !values.empty(), "keys and values must each be values, scales and biases");
  check_heads(queries, keys[0], values[0]);
  check_quantized(keys, values, queries.shape(3), form);
  require(keys[0].shape(2) >= queries.shape(2), "there are fewer columns than queries");
  check_lengths(lengths, queries, keys[0]);
}

mx::array attention_array(const mx::array& queries, SlabForm form, bool has_lengths, float scale, bool causal,
                          std::vector<mx::array> inputs) {
  auto primitive = std::make_shared<Attention>(cpu_stream(), form, has_lengths, scale, causal);
  return mx::array(queries.shape(), queries.dtype(), primitive, std::move(inputs));
}

mx::array in_place_array(const mx::array& queries, SlabForm form, float scale, std::vector<mx::array> inputs) {
  auto primitive = std::make_shared<AttendInPlace>(cpu_stream(), form, scale);
  return mx::array(queries.shape(), queries.dtype(), primitive, std::move(inputs));
}

}  // namespace

mx::array attention(const mx::array& queries, const mx::array& keys, const mx::array& values, float scale,
                    bool causal) {
  check_slabs(queries, keys, values);
  require(keys.shape(0) == queries.shape(0), "keys have other rows than queries");
  return attention_array(queries, {}, false, scale, causal, {queries, keys, values});
}

mx::array slab_attention(const mx::array& queries, const mx::array& keys, const mx::array& values,
                         const mx::array& lengths, float scale) {
  check_slabs(queries, keys, values);
  check_lengths(lengths, queries, keys);
  return attention_array(queries, {}, true, scale, true, {queries, keys, values, lengths});
}

mx::array quantized_slab_attention(const mx::array& queries, const std::vector<mx::array>& keys,
                                   const std::vector<mx::array>& values, const mx::array& lengths, float scale,
                                   int group_size, int bits) {
  SlabForm form{group_size, bits};
  check_quantized_slabs(queries, keys, values, lengths, form);
  return attention_array(queries, form, true, scale, true,
                         {queries, keys[0], keys[1], keys[2], values[0], values[1], values[2], lengths});
}

mx::array attend_in_place(const mx::array& queries, const mx::array& keys, const mx::array& values,
                          const mx::array& slab_keys, const mx::array& slab_values, const mx::array& lengths,
                          float scale) {
  check_slabs(queries, slab_keys, slab_values);
  check_lengths(lengths, queries, slab_keys);
  check_new(queries, keys, values, slab_keys, slab_keys.dtype());
  return in_place_array(queries, {}, scale, {queries, keys, values, slab_keys, slab_values, lengths});
}

mx::array attend_quantized_in_place(const mx::array& queries, const mx::array& keys, const mx::array& values,
                                    const std::vector<mx::array>& slab_keys, const std::vector<mx::array>& slab_values,
                                    const mx::array& lengths, float scale, int group_size, int bits) {
  SlabForm form{group_size, bits};
  check_quantized_slabs(queries, slab_keys, slab_values, lengths, form);
  check_new(queries, keys, values, slab_keys[0], slab_keys[1].dtype());
  return in_place_array(queries, form, scale,
                        {queries, keys, values, slab_keys[0], slab_keys[1], slab_keys[2], slab_values[0],
                         slab_values[1], slab_values[2], lengths});
}

}  // namespace mlx_serving
