#include <cmath>
#include <cstring>
#include <type_traits>

#include "kernels.hpp"
#include "simd_scalar.hpp"

namespace mlx_serving::cpu::scalar {
#include "kernels/all.inl"
extern const Kernels table = MLX_SERVING_TABLE("scalar");
}  // namespace mlx_serving::cpu::scalar
