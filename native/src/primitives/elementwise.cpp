// Norms, gates and rotations.
#include "../cpu/elementwise.hpp"

#include <cmath>

#include "arrays.hpp"
#include "primitives.hpp"

namespace mlx_serving {
namespace {

cpu::Rows rows_of(const mx::array& a) {
  long columns = a.shape(-1);
  return {a.data<void>(), type_of(a, "x"), long(a.size()) / columns, columns};
}

// RMS or layer norm; inputs x, then weight and bias as far as they are there.
class Norm : public CpuPrimitive {
 public:
  Norm(mx::Stream stream, bool centred, bool weighted, bool biased, float eps)
      : CpuPrimitive(stream), centred_(centred), weighted_(weighted), biased_(biased), eps_(eps) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    mx::array x = contiguous_input(inputs[0], encoder);
    const void *weight = nullptr, *bias = nullptr;
    cpu::Type type = cpu::Type::f32;
    if (weighted_) {
      mx::array part = contiguous_input(inputs[1], encoder);
      weight = part.data<void>();
      type = type_of(part, "weight");
    }
    if (biased_) {
      mx::array part = contiguous_input(inputs.back(), encoder);
      bias = part.data<void>();
      type = type_of(part, "bias");
    }
    allocate(outputs[0]);
    cpu::Rows rows = rows_of(x);
    void* y = outputs[0].data<void>();
    cpu::Type y_type = type_of(outputs[0], "y");
    if (centred_) encoder.dispatch([=, eps = eps_] { cpu::layer_norm(rows, weight, bias, type, eps, y, y_type); });
    else encoder.dispatch([=, eps = eps_] { cpu::rms_norm(rows, weight, type, eps, y, y_type); });
  }
  const char* name() const override { return "mlx_serving::Norm"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    auto& o = static_cast<const Norm&>(other);
    return centred_ == o.centred_ && weighted_ == o.weighted_ && biased_ == o.biased_ && eps_ == o.eps_;
  }

 private:
  bool centred_, weighted_, biased_;
  float eps_;
};

class Gate : public CpuPrimitive {
 public:
  Gate(mx::Stream stream, cpu::Activation activation) : CpuPrimitive(stream), activation_(activation) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    mx::array gates = contiguous_input(inputs[0], encoder), x = contiguous_input(inputs[1], encoder);
    allocate(outputs[0]);
    encoder.dispatch([activation = activation_, gates = gates.data<void>(), values = x.data<void>(),
                      y = outputs[0].data<void>(), type = type_of(x, "x"), count = long(x.size())] {
      cpu::gate(activation, gates, values, y, type, count);
    });
  }
  const char* name() const override { return "mlx_serving::Gate"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    return activation_ == static_cast<const Gate&>(other).activation_;
  }

 private:
  cpu::Activation activation_;
};

class Rope : public CpuPrimitive {
 public:
  // `base` 0: the frequencies are the third input.
  Rope(mx::Stream stream, int dims, bool traditional, float base, float scale)
      : CpuPrimitive(stream), dims_(dims), traditional_(traditional), base_(base), scale_(scale) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    mx::array x = dense_last_axis(inputs[0], encoder), offsets = contiguous_input(inputs[1], encoder);
    mx::array freqs = base_ == 0.0f ? contiguous_input(inputs[2], encoder) : offsets;
    allocate_alike(x, outputs[0]);
    cpu::Rotation rotation{x.shape(0), x.shape(1), x.shape(2), x.shape(3), traditional_, scale_, {}};
    encoder.dispatch([rotation, half = dims_ / 2, base = base_, source = heads_of(x), target = heads_of(outputs[0]),
                      given = freqs.data<float>(), first = offsets.data<int>(), single = offsets.size() == 1]() mutable {
      std::vector<int> starts(size_t(rotation.rows));
      for (size_t row = 0; row < starts.size(); row++) starts[row] = first[single ? 0 : row];
      for (int i = 0; i < half; i++)
        rotation.frequencies.push_back(base == 0.0f ? 1.0f / given[i]
                                                    : std::exp(float(-i) * (std::log(base) / float(half))));
      cpu::rotate(rotation, source, starts.data(), target);
    });
  }
  const char* name() const override { return "mlx_serving::Rope"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    auto& o = static_cast<const Rope&>(other);
    return dims_ == o.dims_ && traditional_ == o.traditional_ && base_ == o.base_ && scale_ == o.scale_;
  }

 private:
  // Projections are [rows, tokens, heads, size] in memory and stay so: attention reads any strides.
  static void allocate_alike(const mx::array& x, mx::array& y) {
    int64_t heads = x.shape(1), tokens = x.shape(2), size = x.shape(3);
    if (x.flags().row_contiguous || heads == 1 || tokens == 1) return allocate(y);
    mx::array::Flags flags{true, false, false};
    y.set_data(mx::allocator::malloc(y.nbytes()), y.size(), {heads * tokens * size, size, heads * size, 1}, flags);
  }

  int dims_;
  bool traditional_;
  float base_, scale_;
};

mx::array norm(const mx::array& x, const std::optional<mx::array>& weight, const std::optional<mx::array>& bias,
               float eps, bool centred) {
  type_of(x, "x");
  require(x.ndim() >= 1 && x.shape(-1) > 0, "x must have at least one axis, which is not empty");
  std::vector<mx::array> inputs{x};
  mx::Dtype dtype = x.dtype();
  for (auto& part : {weight, bias}) {
    if (!part) continue;
    type_of(*part, "weight and bias");
    require(part->ndim() == 1 && part->shape(0) == x.shape(-1),
            "weight " + shape_text(*part) + " does not fit x " + shape_text(x));
    dtype = mx::promote_types(dtype, part->dtype());
    inputs.push_back(*part);
  }
  require(!weight || !bias || weight->dtype() == bias->dtype(), "weight and bias must have one type");
  if (x.size() == 0) return mx::zeros(x.shape(), dtype, cpu_stream());
  auto primitive = std::make_shared<Norm>(cpu_stream(), centred, bool(weight), bool(bias), eps);
  return mx::array(x.shape(), dtype, primitive, std::move(inputs));
}

mx::array gated(cpu::Activation activation, const mx::array& gate, const mx::array& x) {
  type_of(x, "x");
  require(gate.dtype() == x.dtype() && gate.shape() == x.shape(), "gate and x must have one shape and type");
  if (x.size() == 0) return x;
  return mx::array(x.shape(), x.dtype(), std::make_shared<Gate>(cpu_stream(), activation), {gate, x});
}

}  // namespace

mx::array rms_norm(const mx::array& x, const std::optional<mx::array>& weight, float eps) {
  return norm(x, weight, std::nullopt, eps, false);
}

mx::array layer_norm(const mx::array& x, const std::optional<mx::array>& weight, const std::optional<mx::array>& bias,
                     float eps) {
  return norm(x, weight, bias, eps, true);
}

mx::array swiglu(const mx::array& gate, const mx::array& x) {
  return gated(cpu::Activation::silu, gate, x);
}

mx::array geglu(const mx::array& gate, const mx::array& x) {
  return gated(cpu::Activation::gelu, gate, x);
}

mx::array rope(const mx::array& x, int dims, bool traditional, std::optional<float> base, float scale,
               const mx::array& offset, const std::optional<mx::array>& freqs) {
  type_of(x, "x");
  require(x.ndim() == 4, "x must be [rows, heads, tokens, size]");
  require(dims > 0 && dims % 2 == 0 && dims <= x.shape(3), "dims must be even and at most the size of a head");
  require(base.has_value() != freqs.has_value(), "either base or freqs must be given");
  require(!base || *base > 0.0f, "base must be positive");
  require(offset.dtype() == mx::int32 && (offset.size() == 1 || (offset.ndim() == 1 && offset.shape(0) == x.shape(0))),
          "offset must be int32, one or a row's each");
  std::vector<mx::array> inputs{x, offset};
  if (freqs) {
    require(freqs->dtype() == mx::float32 && freqs->ndim() == 1 && freqs->shape(0) == dims / 2,
            "freqs must be float32 [dims / 2]");
    inputs.push_back(*freqs);
  }
  if (x.size() == 0) return x;
  auto primitive = std::make_shared<Rope>(cpu_stream(), dims, traditional, base.value_or(0.0f), scale);
  return mx::array(x.shape(), x.dtype(), primitive, std::move(inputs));
}

}  // namespace mlx_serving
