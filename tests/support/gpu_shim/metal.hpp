// Metal's names for what the machine does. Address spaces and attributes are taken away: they are not checked.
#pragma once

#include <math.h>

#include "machine.hpp"

#define device
#define constant
#define threadgroup

using uint = unsigned int;
using ushort = unsigned short;
using machine::uint3;
using bfloat16_t = machine::bfloat16;

namespace metal {

enum class mem_flags { mem_none, mem_device, mem_threadgroup };
inline mem_flags operator|(mem_flags, mem_flags) { return mem_flags::mem_threadgroup; }

inline float exp(float x) { return expf(x); }
inline float max(float x, float y) { return fmaxf(x, y); }
inline int max(int x, int y) { return x > y ? x : y; }
inline int min(int x, int y) { return x < y ? x : y; }

template <typename T>
T simd_shuffle_xor(T x, ushort step) {
  return machine::exchanged(x, machine::Exchange::exclusive_or, step);
}

template <typename T>
T simd_shuffle_up(T x, ushort step) {
  return machine::exchanged(x, machine::Exchange::up, step);
}

template <typename T>
T simd_shuffle(T x, ushort lane) {
  return machine::exchanged(x, machine::Exchange::read, lane);
}

inline void threadgroup_barrier(mem_flags flags) {
  if (flags == mem_flags::mem_threadgroup) machine::barrier();
}

template <typename T, typename From>
T as_type(From from) {
  static_assert(sizeof(T) == sizeof(From));
  T to;
  memcpy(&to, &from, sizeof(T));
  return to;
}

}  // namespace metal

using namespace metal;
