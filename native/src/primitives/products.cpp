// Matrix products.
#include "../cpu/panels.hpp"
#include "../cpu/products.hpp"

#include "arrays.hpp"
#include "primitives.hpp"

namespace mlx_serving {
namespace {

mx::Shape panel_shape(const mx::array& given) {
  return {given.shape(0) / int(cpu::kPanelRows), given.shape(1), int(cpu::kPanelRows)};
}

class QuantizedProduct : public CpuPrimitive {
 public:
  QuantizedProduct(mx::Stream stream, int group_size, int bits)
      : CpuPrimitive(stream), group_size_(group_size), bits_(bits) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    mx::array x = contiguous_input(inputs[0], encoder);
    mx::array weight = contiguous_input(inputs[1], encoder);
    mx::array scales = contiguous_input(inputs[2], encoder);
    mx::array biases = contiguous_input(inputs[3], encoder);
    allocate(outputs[0]);
    long columns = x.shape(-1), rows = matrix_rows(weight);
    cpu::QuantizedMatrix matrix{weight.data<uint32_t>(), scales.data<void>(), biases.data<void>(),
                                type_of(scales, "scales"), rows, columns, group_size_, bits_, weight.ndim() == 3};
    cpu::Rows input{x.data<void>(), type_of(x, "x"), long(x.size()) / columns, columns};
    cpu::Output output{outputs[0].data<void>(), input.type, rows};
    encoder.dispatch([=] { cpu::multiply(matrix, input, output); });
  }
  const char* name() const override { return "mlx_serving::QuantizedProduct"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    auto& o = static_cast<const QuantizedProduct&>(other);
    return group_size_ == o.group_size_ && bits_ == o.bits_;
  }
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override {
    auto shape = inputs[0].shape();
    shape.back() = matrix_rows(inputs[1]);
    return {shape};
  }

 private:
  int group_size_;
  int bits_;
};

class DenseProduct : public CpuPrimitive {
 public:
  using CpuPrimitive::CpuPrimitive;

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    mx::array x = contiguous_input(inputs[0], encoder);
    mx::array weight = contiguous_input(inputs[1], encoder);
    allocate(outputs[0]);
    long columns = x.shape(-1), rows = weight.shape(0);
    cpu::DenseMatrix matrix{weight.data<void>(), type_of(weight, "weight"), rows, columns, columns};
    cpu::Rows input{x.data<void>(), type_of(x, "x"), long(x.size()) / columns, columns};
    cpu::Output output{outputs[0].data<void>(), input.type, rows};
    encoder.dispatch([=] { cpu::multiply(matrix, input, output); });
  }
  const char* name() const override { return "mlx_serving::DenseProduct"; }
  bool is_equivalent(const mx::Primitive&) const override { return true; }
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override {
    auto shape = inputs[0].shape();
    shape.back() = inputs[1].shape(0);
    return {shape};
  }
};

// `bits`: of the digits in the matrix's words; 0: its elements are whole.
class ToPanels : public CpuPrimitive {
 public:
  ToPanels(mx::Stream stream, int bits) : CpuPrimitive(stream), bits_(bits) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    mx::array given = contiguous_input(inputs[0], encoder);
    allocate(outputs[0]);
    long rows = given.shape(0), columns = given.shape(1);
    encoder.dispatch([=, bits = bits_, out = outputs[0]]() mutable {
      if (bits != 0) cpu::digits_to_panels(given.data<uint32_t>(), rows, columns, bits, out.data<uint32_t>());
      else if (given.itemsize() == 4) cpu::to_panels(given.data<uint32_t>(), rows, columns, out.data<uint32_t>());
      else cpu::to_panels(given.data<uint16_t>(), rows, columns, out.data<uint16_t>());
    });
  }
  const char* name() const override { return "mlx_serving::ToPanels"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    return bits_ == static_cast<const ToPanels&>(other).bits_;
  }
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override {
    return {panel_shape(inputs[0])};
  }

 private:
  int bits_;
};

void require_panel_rows(const mx::array& matrix) {
  require(matrix.ndim() == 2 && matrix.size() > 0 && matrix.shape(0) % cpu::kPanelRows == 0,
          "a matrix " + shape_text(matrix) + " in panels must have a multiple of 32 rows");
}

mx::array product(const mx::array& x, int rows, std::shared_ptr<mx::Primitive> primitive,
                  std::vector<mx::array> inputs) {
  auto shape = x.shape();
  shape.back() = rows;
  if (x.size() == 0 || rows == 0) return mx::zeros(shape, x.dtype(), cpu_stream());
  return mx::array(shape, x.dtype(), std::move(primitive), std::move(inputs));
}

}  // namespace

mx::array quantized_matmul(const mx::array& x, const mx::array& weight, const mx::array& scales,
                           const mx::array& biases, int group_size, int bits) {
  require(bits == 2 || bits == 3 || bits == 4 || bits == 5 || bits == 6 || bits == 8, "bits must be 2, 3, 4, 5, 6 or 8");
  require(group_size == 32 || group_size == 64 || group_size == 128, "group_size must be 32, 64 or 128");
  type_of(x, "x");
  type_of(scales, "scales");
  require(weight.dtype() == mx::uint32, "weight must be uint32");
  require(scales.dtype() == biases.dtype(), "scales and biases must have one type");
  require(x.ndim() >= 1 && (weight.ndim() == 2 || weight.ndim() == 3) && scales.ndim() == weight.ndim(),
          "x must have at least one axis, the weight two, or three in panels");
  if (weight.ndim() == 3) check_panels(weight, scales, bits);
  long columns = x.shape(-1);
  require(columns > 0 && columns % group_size == 0 && columns * bits == long(weight.shape(1)) * 32,
          "x " + shape_text(x) + " and weight " + shape_text(weight) + " do not belong together");
  require(scales.shape() == biases.shape() && scales.shape(0) == weight.shape(0) &&
              scales.shape(1) * long(group_size) == columns,
          "scales " + shape_text(scales) + " and biases " + shape_text(biases) + " do not fit weight " +
              shape_text(weight));
  return product(x, matrix_rows(weight), std::make_shared<QuantizedProduct>(cpu_stream(), group_size, bits),
                 {x, weight, scales, biases});
}

int matrix_rows(const mx::array& weight) {
  return weight.shape(0) * (weight.ndim() == 3 ? int(cpu::kPanelRows) : 1);
}

void check_panels(const mx::array& weight, const mx::array& scales, int bits) {
  require(takes_panels(), "this processor has no products with panels");
  require(cpu::panels_take(bits), "panels must have 4, 5, 6 or 8 bits");
  require(weight.shape(2) == cpu::kPanelRows && scales.shape(2) == cpu::kPanelRows,
          "panels " + shape_text(weight) + " and " + shape_text(scales) + " must be of 32 rows");
}

bool takes_panels() {
  return cpu::kernels().panel_product != nullptr;
}

mx::array to_panels(const mx::array& matrix) {
  require_panel_rows(matrix);
  require(matrix.itemsize() == 4 || matrix.itemsize() == 2, "a matrix in panels must be of two or four bytes each");
  return mx::array(panel_shape(matrix), matrix.dtype(), std::make_shared<ToPanels>(cpu_stream(), 0), {matrix});
}

mx::array digits_to_panels(const mx::array& weight, int bits) {
  require_panel_rows(weight);
  require(cpu::panels_take(bits), "panels must have 4, 5, 6 or 8 bits");
  require(weight.dtype() == mx::uint32 && weight.shape(1) % bits == 0,
          "digits " + shape_text(weight) + " of " + std::to_string(bits) + " bits must be uint32 words of 32 columns each");
  return mx::array(panel_shape(weight), weight.dtype(), std::make_shared<ToPanels>(cpu_stream(), bits), {weight});
}

mx::array matmul(const mx::array& x, const mx::array& weight) {
  type_of(x, "x");
  type_of(weight, "weight");
  require(x.ndim() >= 1 && weight.ndim() == 2, "x must have at least one axis, the weight two");
  require(x.shape(-1) > 0 && x.shape(-1) == weight.shape(1),
          "x " + shape_text(x) + " and weight " + shape_text(weight) + " do not belong together");
  return product(x, weight.shape(0), std::make_shared<DenseProduct>(cpu_stream()), {x, weight});
}

}  // namespace mlx_serving
