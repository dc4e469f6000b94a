// The Python module `_kernels`. Import mlx.core first: it brings libmlx and the type of its arrays.
#include <mlx/version.h>
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "cpu/kernels.hpp"
#include "cpu/pool.hpp"
#include "primitives/primitives.hpp"

#define MLX_SERVING_TEXT(value) #value
#define MLX_SERVING_VERSION(a, b, c) MLX_SERVING_TEXT(a) "." MLX_SERVING_TEXT(b) "." MLX_SERVING_TEXT(c)

namespace nb = nanobind;

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
  m.def("matmul", &mlx_serving::matmul, "x"_a, "weight"_a);
}
