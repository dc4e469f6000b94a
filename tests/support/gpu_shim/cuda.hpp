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
