// CUDA's names for what the machine does.
#pragma once

#include <math.h>

#include "machine.hpp"

#define __device__
#define __global__
#define __grid_constant__
// Groups run one after the other, so their shared memory can be the same.
#define __shared__ static
#define blockIdx machine::group()
#define gridDim machine::groups()
#define threadIdx machine::member()

struct Shape {
  int32_t sizes[10];
  int32_t operator[](int axis) const { return sizes[axis]; }
};

inline float max(float x, float y) { return fmaxf(x, y); }
inline int min(int x, int y) { return x < y ? x : y; }

inline void __syncthreads() { machine::barrier(); }

template <typename T>
T __shfl_xor_sync(unsigned, T x, int step) {
  return machine::exchanged(x, machine::Exchange::exclusive_or, step);
}

template <typename T>
T __shfl_up_sync(unsigned, T x, int step) {
  // CUDA gives a lane without a source its own.
  T y = machine::exchanged(x, machine::Exchange::up, step);
  return int(machine::member().x % 32) < step ? x : y;
}

template <typename T>
T __shfl_sync(unsigned, T x, int lane) {
  return machine::exchanged(x, machine::Exchange::read, lane);
}

inline unsigned __float_as_uint(float x) {
  unsigned bits;
  memcpy(&bits, &x, 4);
  return bits;
}

inline float __uint_as_float(unsigned bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

inline float __expf(float x) { return expf(x); }

// Two floats of half precision that lie in a word.
inline float half_of(bool is_float16, unsigned word, int which) {
  uint16_t bits = uint16_t(word >> 16 * which);
  if (!is_float16) return __uint_as_float(unsigned(bits) << 16);
  machine::float16 x;
  memcpy(&x, &bits, 2);
  return float(x);
}

// mma.m16n8k16, from the layout of its tiles in the PTX ISA: what a thread needs, it reads from those that hold it.
inline void tensor_product(bool is_float16, float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  const int lane = int(machine::member().x % 32), quad = lane / 4, place = lane % 4;
  for (int from = 0; from < 4; ++from) {
    unsigned mine[4], theirs[2][2];
    for (int i = 0; i < 4; ++i) mine[i] = __shfl_sync(~0u, a[i], 4 * quad + from);
    for (int column = 0; column < 2; ++column) {
      theirs[column][0] = __shfl_sync(~0u, b0, 4 * (2 * place + column) + from);
      theirs[column][1] = __shfl_sync(~0u, b1, 4 * (2 * place + column) + from);
    }
    for (int e = 0; e < 4; ++e) {
      for (int k = 0; k < 4; ++k) {
        const float x = half_of(is_float16, mine[e / 2 + 2 * (k / 2)], k % 2);
        c[e] += x * half_of(is_float16, theirs[e % 2][k / 2], k % 2);
      }
    }
  }
}

#define TENSOR_PRODUCT(type, c, a, b0, b1) tensor_product(type[0] == 'f', c, a, b0, b1)

// __byte_perm for the two selections that pair the halves of two words.
#define PAIRED(x, y, places) ((places) == 0x5410 ? ((x) & 0xffff) | (y) << 16 : (x) >> 16 | ((y) & 0xffff0000))
