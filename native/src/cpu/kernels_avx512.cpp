// Compiled for AVX-512 whatever the rest is compiled for; run only where the processor has it. The standard headers
// stand before the switch, so that no function the linker shares with other files holds these instructions.
#if defined(__x86_64__)
#include <cmath>
#include <cstring>
#include <type_traits>

#include "kernels.hpp"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi2")
#include <immintrin.h>

#include "simd_avx512.hpp"

namespace mlx_serving::cpu::avx512 {
#include "kernels/all.inl"
extern const Kernels table = MLX_SERVING_TABLE("avx512");
}  // namespace mlx_serving::cpu::avx512
#pragma GCC pop_options
#endif
