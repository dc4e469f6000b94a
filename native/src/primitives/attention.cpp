// Attention.
#include "../cpu/attention.hpp"

#include "arrays.hpp"
#include "primitives.hpp"

namespace mlx_serving {
namespace {

// What a call does beside attending.
enum class Form {
  plain,     // inputs queries, keys, values: every row has all columns
  slab,      // and lengths
  quantized  // queries, three arrays of keys, three of values, lengths
};

class Attention : public CpuPrimitive {
 public:
  Attention(mx::Stream stream, Form form, float scale, bool causal, int group_size, int bits)
      : CpuPrimitive(stream), form_(form), scale_(scale), causal_(causal), group_size_(group_size), bits_(bits) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    mx::array queries = dense_last_axis(inputs[0], encoder);
    size_t parts = form_ == Form::quantized ? 3 : 1;
    const mx::array& first = inputs[1];
    cpu::AttentionShape shape{queries.shape(0), queries.shape(1), first.shape(1), queries.shape(2), queries.shape(3),
                              first.shape(2)};
    cpu::Slab keys = slab(inputs, 1, parts, encoder), values = slab(inputs, 1 + parts, parts, encoder);
    allocate_by_token(outputs[0]);
    void* out = outputs[0].data<void>();
    const int* lengths = nullptr;
    if (form_ != Form::plain) lengths = contiguous_input(inputs.back(), encoder).data<int>();
    encoder.dispatch([shape, source = heads_of(queries), keys, values, lengths, scale = scale_, causal = causal_, out] {
      std::vector<int> all(size_t(shape.rows), int(shape.capacity));
      std::vector<int> safe = lengths ? cpu::clamped(lengths, shape, 0) : all;
      cpu::attend(shape, source, keys, values, safe.data(), scale, causal, out);
    });
  }
  const char* name() const override { return "mlx_serving::Attention"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    auto& o = static_cast<const Attention&>(other);
    return form_ == o.form_ && scale_ == o.scale_ && causal_ == o.causal_ && group_size_ == o.group_size_ &&
           bits_ == o.bits_;
  }

 private:
  cpu::Slab slab(const std::vector<mx::array>& inputs, size_t at, size_t parts, mx::cpu::CommandEncoder& encoder) {
    if (parts == 1) return {heads_of(dense_last_axis(inputs[at], encoder))};
    mx::array weight = contiguous_input(inputs[at], encoder), scales = contiguous_input(inputs[at + 1], encoder);
    mx::array biases = contiguous_input(inputs[at + 2], encoder);
    cpu::Heads heads{weight.data<void>(), type_of(scales, "scales"), 0, 0, 0};
    return {heads, scales.data<void>(), biases.data<void>(), bits_, group_size_};
  }

  Form form_;
  float scale_;
  bool causal_;
  int group_size_, bits_;
};

class AttendInPlace : public CpuPrimitive {
 public:
  AttendInPlace(mx::Stream stream, float scale) : CpuPrimitive(stream), scale_(scale) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    mx::array queries = dense_last_axis(inputs[0], encoder);
    mx::array keys = dense_last_axis(inputs[1], encoder), values = dense_last_axis(inputs[2], encoder);
    const int* lengths = contiguous_input(inputs[5], encoder).data<int>();
    cpu::AttentionShape shape{queries.shape(0), queries.shape(1), keys.shape(1), queries.shape(2), queries.shape(3),
                              inputs[3].shape(2)};
    for (size_t slab : {3, 4}) own_places(inputs[slab], encoder);
    allocate_by_token(outputs[0]);
    encoder.dispatch([shape, source = heads_of(queries), new_keys = heads_of(keys), new_values = heads_of(values),
                      slab_keys = heads_of(inputs[3]), slab_values = heads_of(inputs[4]), lengths, scale = scale_,
                      out = outputs[0].data<void>()] {
      cpu::attend_in_place(shape, source, new_keys, new_values, slab_keys, slab_values, lengths, scale, out);
    });
  }
  const char* name() const override { return "mlx_serving::AttendInPlace"; }
  // Writing is not repeatable: two calls are never one.
  bool is_equivalent(const mx::Primitive&) const override { return false; }

 private:
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

mx::array attention_array(const mx::array& queries, Form form, float scale, bool causal, int group_size, int bits,
                          std::vector<mx::array> inputs) {
  auto primitive = std::make_shared<Attention>(cpu_stream(), form, scale, causal, group_size, bits);
  return mx::array(queries.shape(), queries.dtype(), primitive, std::move(inputs));
}

}  // namespace

mx::array attention(const mx::array& queries, const mx::array& keys, const mx::array& values, float scale,
                    bool causal) {
  check_slabs(queries, keys, values);
  require(keys.shape(0) == queries.shape(0), "keys have other rows than queries");
  return attention_array(queries, Form::plain, scale, causal, 0, 0, {queries, keys, values});
}

mx::array slab_attention(const mx::array& queries, const mx::array& keys, const mx::array& values,
                         const mx::array& lengths, float scale) {
  check_slabs(queries, keys, values);
  check_lengths(lengths, queries, keys);
  return attention_array(queries, Form::slab, scale, true, 0, 0, {queries, keys, values, lengths});
}

mx::array quantized_slab_attention(const mx::array& queries, const std::vector<mx::array>& keys,
                                   const std::vector<mx::array>& values, const mx::array& lengths, float scale,
                                   int group_size, int bits) {
  require(keys.size() == 3 && values.size() == 3, "keys and values must each be values, scales and biases");
  check_heads(queries, keys[0], values[0]);
  require(bits == 4 || bits == 8, "bits must be 4 or 8");
  require(group_size == 32 || group_size == 64 || group_size == 128, "group_size must be 32, 64 or 128");
  long size = queries.shape(3);
  for (const auto& side : {keys, values}) {
    require(side[0].dtype() == mx::uint32 && side[0].shape() == keys[0].shape() && side[0].shape(3) * 32L == size * bits,
            "quantised keys and values do not fit queries " + shape_text(queries));
    auto shape = side[0].shape();
    shape.back() = int(size / group_size);
    type_of(side[1], "scales");
    require(size % group_size == 0 && side[1].shape() == shape && side[2].shape() == shape &&
                side[1].dtype() == side[2].dtype() && side[1].dtype() == keys[1].dtype(),
            "scales and biases do not fit the quantised values");
  }
  require(keys[0].shape(2) >= queries.shape(2), "there are fewer columns than queries");
  check_lengths(lengths, queries, keys[0]);
  return attention_array(queries, Form::quantized, scale, true, group_size, bits,
                         {queries, keys[0], keys[1], keys[2], values[0], values[1], values[2], lengths});
}

mx::array attend_in_place(const mx::array& queries, const mx::array& keys, const mx::array& values,
                          const mx::array& slab_keys, const mx::array& slab_values, const mx::array& lengths,
                          float scale) {
  check_slabs(queries, slab_keys, slab_values);
  check_lengths(lengths, queries, slab_keys);
  require(keys.ndim() == 4 && keys.shape() == values.shape() && keys.shape(0) == queries.shape(0) &&
              keys.shape(1) == slab_keys.shape(1) && keys.shape(2) == queries.shape(2) &&
              keys.shape(3) == queries.shape(3),
          "new keys " + shape_text(keys) + " do not fit queries " + shape_text(queries));
  require(keys.dtype() == slab_keys.dtype() && values.dtype() == slab_keys.dtype(),
          "new keys and values must be of the slabs' type");
  auto primitive = std::make_shared<AttendInPlace>(cpu_stream(), scale);
  return mx::array(queries.shape(), queries.dtype(), primitive,
                   {queries, keys, values, slab_keys, slab_values, lengths});
}

}  // namespace mlx_serving
