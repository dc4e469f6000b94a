#if defined(__aarch64__)
#include <cmath>
#include <cstring>
#include <type_traits>

#include "kernels.hpp"
#include "simd_neon.hpp"

namespace mlx_serving::cpu::neon {
#include "kernels/all.inl"
extern const Kernels table = MLX_SERVING_TABLE("neon");
}  // namespace mlx_serving::cpu::neon
#endif
