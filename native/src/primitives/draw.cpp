// Drawing tokens.
#include "../cpu/draw.hpp"

#include "arrays.hpp"
#include "primitives.hpp"

namespace mlx_serving {
namespace {

cpu::Rows rows_of(const mx::array& logits) {
  return {logits.data<void>(), type_of(logits, "logits"), logits.shape(0), logits.shape(1)};
}

// Inputs logits, floats, limits, and masks as far as there are any.
class Draw : public CpuPrimitive {
 public:
  using CpuPrimitive::CpuPrimitive;

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    std::vector<mx::array> dense;
    for (auto& input : inputs) dense.push_back(contiguous_input(input, encoder));
    allocate(outputs[0]);
    encoder.dispatch([logits = rows_of(dense[0]), floats = dense[1].data<float>(), limits = dense[2].data<int>(),
                      masks = dense.size() > 3 ? dense[3].data<uint32_t>() : nullptr,
                      tokens = outputs[0].data<int32_t>()] {
      std::vector<cpu::DrawParameters> parameters;
      for (long row = 0; row < logits.count; row++) {
        const float* given = floats + 4 * row;
        parameters.push_back({given[0], given[1], given[2], given[3], limits[row]});
      }
      cpu::draw(logits, masks, parameters.data(), tokens);
    });
  }
  const char* name() const override { return "mlx_serving::Draw"; }
  bool is_equivalent(const mx::Primitive&) const override { return true; }
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override {
    return {{inputs[0].shape(0)}};
  }
};

// Inputs logits, places, penalties, then bias, counts and seen as far as they are there.
class Adjust : public CpuPrimitive {
 public:
  Adjust(mx::Stream stream, bool is_biased, bool is_penal)
      : CpuPrimitive(stream), is_biased_(is_biased), is_penal_(is_penal) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    std::vector<mx::array> dense;
    for (auto& input : inputs) dense.push_back(contiguous_input(input, encoder));
    allocate(outputs[0]);
    size_t penal = is_biased_ ? 4 : 3;
    encoder.dispatch([logits = rows_of(dense[0]), places = dense[1].data<int32_t>(),
                      penalties = dense[2].data<float>(), count = dense[2].shape(0),
                      bias = is_biased_ ? dense[3].data<float>() : nullptr,
                      counts = is_penal_ ? dense[penal].data<float>() : nullptr,
                      seen = is_penal_ ? dense[penal + 1].data<bool>() : nullptr, y = outputs[0].data<float>()] {
      std::vector<cpu::Adjustment> adjustments;
      for (long i = 0; i < count; i++) {
        long first = i * logits.columns;
        adjustments.push_back({bias ? bias + first : nullptr, counts ? counts + first : nullptr,
                               seen ? seen + first : nullptr, penalties[3 * i], penalties[3 * i + 1],
                               penalties[3 * i + 2]});
      }
      cpu::adjust(logits, places, adjustments.data(), count, y);
    });
  }
  const char* name() const override { return "mlx_serving::Adjust"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    auto& o = static_cast<const Adjust&>(other);
    return is_biased_ == o.is_biased_ && is_penal_ == o.is_penal_;
  }

 private:
  bool is_biased_, is_penal_;
};

void require_logits(const mx::array& logits) {
  type_of(logits, "logits");
  require(logits.ndim() == 2 && logits.shape(1) > 0, "logits must be [rows, vocabulary]");
}

}  // namespace

mx::array draw(const mx::array& logits, const std::optional<mx::array>& masks, const mx::array& floats,
               const mx::array& limits) {
  require_logits(logits);
  int rows = logits.shape(0), words = (logits.shape(1) + 31) / 32;
  require(floats.dtype() == mx::float32 && floats.shape() == mx::Shape{rows, 4}, "floats must be float32 [rows, 4]");
  require(limits.dtype() == mx::int32 && limits.shape() == mx::Shape{rows}, "limits must be int32 [rows]");
  std::vector<mx::array> inputs{logits, floats, limits};
  if (masks) {
    require(masks->dtype() == mx::uint32 && masks->shape() == mx::Shape{rows, words},
            "masks must be uint32 [rows, ceil(vocabulary / 32)], not " + shape_text(*masks));
    inputs.push_back(*masks);
  }
  if (rows == 0) return mx::zeros({0}, mx::int32, cpu_stream());
  return mx::array({rows}, mx::int32, std::make_shared<Draw>(cpu_stream()), std::move(inputs));
}

mx::array adjust(const mx::array& logits, const mx::array& places, const std::optional<mx::array>& bias,
                 const std::optional<mx::array>& counts, const std::optional<mx::array>& seen,
                 const mx::array& penalties) {
  require_logits(logits);
  require(places.dtype() == mx::int32 && places.shape() == mx::Shape{logits.shape(0)}, "places must be int32 [rows]");
  require(penalties.dtype() == mx::float32 && penalties.ndim() == 2 && penalties.shape(1) == 3,
          "penalties must be float32 [some, 3]");
  require(bool(counts) == bool(seen), "counts and seen must be given together");
  std::vector<mx::array> inputs{logits, places, penalties};
  for (auto& part : {bias, counts, seen}) {
    if (!part) continue;
    bool is_seen = inputs.size() == (bias ? 5u : 4u);
    require(part->dtype() == (is_seen ? mx::bool_ : mx::float32), "bias and counts must be float32, seen bool");
    require(part->shape() == mx::Shape{penalties.shape(0), logits.shape(1)},
            "bias, counts and seen " + shape_text(*part) + " do not fit penalties and logits");
    inputs.push_back(*part);
  }
  if (logits.size() == 0) return mx::zeros(logits.shape(), mx::float32, cpu_stream());
  auto primitive = std::make_shared<Adjust>(cpu_stream(), bool(bias), bool(counts));
  return mx::array(logits.shape(), mx::float32, primitive, std::move(inputs));
}

}  // namespace mlx_serving
