// Compiled for AVX2 whatever the rest is compiled for; run only where the processor has it. The standard headers
// stand before the switch, so that no function the linker shares with other files holds these instructions.
#if defined(__x86_64__)
#include <cmath>
#include <cstring>
#include <type_traits>

#include "kernels.hpp"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi2")
#include <immintrin.h>

#include "simd_avx2.hpp"

namespace mlx_serving::cpu::avx2 {
#include "kernels/all.inl"
extern const Kernels table = MLX_SERVING_TABLE("avx2");
}  // namespace mlx_serving::cpu::avx2
#pragma GCC pop_options
#endif
