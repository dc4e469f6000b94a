// A group of GPU threads on one CPU thread: each is a fibre that runs until it waits for the others.
#pragma once

#include <stdint.h>
#include <string.h>

namespace machine {

struct uint3 {
  uint32_t x, y, z;
};

// Where the running thread is.
const uint3& group();
const uint3& groups();
const uint3& member();

// All threads of the group meet.
void barrier();

enum class Exchange { exclusive_or, up, read };
// All 32 threads of the warp give 32 bits and take those of another one.
uint32_t exchange(uint32_t bits, Exchange kind, int argument);

template <typename T>
T exchanged(T x, Exchange kind, int argument) {
  static_assert(sizeof(T) == 4);
  uint32_t bits;
  memcpy(&bits, &x, 4);
  bits = exchange(bits, kind, argument);
  memcpy(&x, &bits, 4);
  return x;
}

// Run all groups of a grid of threads, in an order drawn from `seed`. Null, or what went wrong.
const char* launch(uint3 grid, uint3 threads, unsigned seed, void (*body)(void*), void* argument);

// bfloat16 as far as kernels need it; rounds to the nearest, ties to even.
struct bfloat16 {
  uint16_t bits;
  bfloat16() = default;
  explicit bfloat16(float x) {
    uint32_t whole;
    memcpy(&whole, &x, 4);
    bits = x != x ? 0x7fc0 : uint16_t((whole + 0x7fff + ((whole >> 16) & 1)) >> 16);
  }
  explicit operator float() const {
    uint32_t whole = uint32_t(bits) << 16;
    float x;
    memcpy(&x, &whole, 4);
    return x;
  }
};

struct float16 {
  _Float16 value;
  float16() = default;
  explicit float16(float x) : value(_Float16(x)) {}
  explicit operator float() const { return float(value); }
};

}  // namespace machine
