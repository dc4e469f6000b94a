// The Python module `_kernels`. Import mlx.core first: it brings libmlx and the type of its arrays.
#include <mlx/version.h>
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include "cpu/kernels.hpp"
#include "cpu/pool.hpp"
#include "primitives/block.hpp"
#include "primitives/primitives.hpp"

#define MLX_SERVING_TEXT(value) #value
#define MLX_SERVING_VERSION(a, b, c) MLX_SERVING_TEXT(a) "." MLX_SERVING_TEXT(b) "." MLX_SERVING_TEXT(c)

namespace nb = nanobind;

using Linear = std::tuple<std::vector<mlx::core::array>, std::optional<mlx::core::array>, int, int>;

// Found in the library's file by native/kernel_choice.py, which must not load it to know.
extern "C" __attribute__((used)) const char mlx_serving_kernels_mark[] =
    "mlx-serving kernels for mlx " MLX_SERVING_VERSION(MLX_VERSION_MAJOR, MLX_VERSION_MINOR, MLX_VERSION_PATCH);

using namespace nb::literals;

NB_MODULE(_kernels, m) {
  m.def("set_threads", &mlx_serving::cpu::set_threads, "count"_a);
  m.def("threads", &mlx_serving::cpu::threads);
  m.def("instructions", [] { return std::string(mlx_serving::cpu::kernels().name); });
  m.def("use_instructions", [](const std::string& name) { return mlx_serving::cpu::use_instructions(name.c_str()); });
  m.def("quantized_matmul", &mlx_serving::quantized_matmul, "x"_a, "weight"_a, "scales"_a, "biases"_a, "group_size"_a,
        "bits"_a);
  m.def("takes_panels", &mlx_serving::takes_panels);
  m.def("to_panels", &mlx_serving::to_panels, "matrix"_a);
  m.def("digits_to_panels", &mlx_serving::digits_to_panels, "weight"_a, "bits"_a);
  m.def("matmul", &mlx_serving::matmul, "x"_a, "weight"_a);
  m.def("rms_norm", &mlx_serving::rms_norm, "x"_a, "weight"_a.none(), "eps"_a);
  m.def("layer_norm", &mlx_serving::layer_norm, "x"_a, "weight"_a.none(), "bias"_a.none(), "eps"_a);
  m.def("swiglu", &mlx_serving::swiglu, "gate"_a, "x"_a);
  m.def("geglu", &mlx_serving::geglu, "gate"_a, "x"_a);
  m.def("rope", &mlx_serving::rope, "x"_a, "dims"_a, "traditional"_a, "base"_a.none(), "scale"_a, "offset"_a,
        "freqs"_a.none());
  m.def("attention", &mlx_serving::attention, "queries"_a, "keys"_a, "values"_a, "scale"_a, "causal"_a);
  m.def("slab_attention", &mlx_serving::slab_attention, "queries"_a, "keys"_a, "values"_a, "lengths"_a, "scale"_a);
  m.def("quantized_slab_attention", &mlx_serving::quantized_slab_attention, "queries"_a, "keys"_a, "values"_a,
        "lengths"_a, "scale"_a, "group_size"_a, "bits"_a);
  m.def("attend_in_place", &mlx_serving::attend_in_place, "queries"_a, "keys"_a, "values"_a, "slab_keys"_a,
        "slab_values"_a, "lengths"_a, "scale"_a);
  m.def("attend_quantized_in_place", &mlx_serving::attend_quantized_in_place, "queries"_a, "keys"_a, "values"_a,
        "slab_keys"_a, "slab_values"_a, "lengths"_a, "scale"_a, "group_size"_a, "bits"_a);
  m.def("draw", &mlx_serving::draw, "logits"_a, "masks"_a.none(), "floats"_a, "limits"_a);
  m.def("adjust", &mlx_serving::adjust, "logits"_a, "places"_a, "bias"_a.none(), "counts"_a.none(), "seen"_a.none(),
        "penalties"_a);

  using mlx_serving::Block, mlx_serving::BlockParameters, mlx_serving::LinearParameters;
  nb::class_<Block>(m, "Block")
      .def(
          "__init__",
          [](Block* self, const std::vector<Linear>& layers, const std::vector<mlx::core::array>& norms,
             const std::vector<float>& eps, int heads, int kv_heads, int rope_dims, bool traditional, float rope_scale,
             std::optional<float> base, const std::optional<mlx::core::array>& freqs) {
            BlockParameters parameters{{}, norms, eps, heads, kv_heads, rope_dims, traditional, rope_scale, base, freqs};
            for (const auto& [weight, bias, group_size, bits] : layers)
              parameters.layers.push_back({weight, bias, group_size, bits});
            new (self) Block(std::move(parameters));
          },
          "layers"_a, "norms"_a, "eps"_a, "heads"_a, "kv_heads"_a, "rope_dims"_a, "traditional"_a, "rope_scale"_a,
          "base"_a.none(), "freqs"_a.none())
      .def("enter", &Block::enter, "x"_a, "offset"_a)
      .def("leave", &Block::leave, "x"_a, "attended"_a);

  // One array is not to be taken for a sequence of its rows.
  using Slab = std::variant<mlx::core::array, mlx_serving::Side>;
  using Group = std::tuple<mlx::core::array, std::vector<std::tuple<Slab, Slab>>>;
  using mlx_serving::Side, mlx_serving::Stack, mlx_serving::StackSlabs;
  nb::class_<Stack>(m, "Stack")
      .def(nb::init<const std::vector<Block>&, float>(), "blocks"_a, "scale"_a)
      .def(
          "run",
          [](const Stack& self, const mlx::core::array& x, const std::vector<Group>& groups) {
            auto side = [](const Slab& slab) {
              const auto* array = std::get_if<mlx::core::array>(&slab);
              return array != nullptr ? Side{*array} : std::get<Side>(slab);
            };
            std::vector<StackSlabs> slabs;
            for (const auto& [lengths, layers] : groups) {
              slabs.push_back({lengths, {}, {}});
              for (const auto& [keys, values] : layers) {
                slabs.back().keys.push_back(side(keys));
                slabs.back().values.push_back(side(values));
              }
            }
            return self.run(x, slabs);
          },
          "x"_a, "groups"_a);
}
