// Four lanes in the compiler's own vectors: for processors without a vector unit known here.
#pragma once

#include <cmath>

#include "types.hpp"

namespace mlx_serving::cpu::scalar {

typedef float Floats __attribute__((vector_size(16)));
typedef uint32_t Unsigned __attribute__((vector_size(16)));
typedef int32_t Signed __attribute__((vector_size(16)));

struct V {
  Floats v;
};
struct Words {
  Unsigned v;
};
constexpr int W = 4;
constexpr int kRegisters = 16;
constexpr int kTileRows = 4;     // rows of a matrix product's register tile
constexpr int kTileVectors = 2;  // and its columns, in vectors

inline V set1(float x) { return {Floats{x, x, x, x}}; }
inline V zero() { return set1(0.0f); }
template <class T>
inline V load(const T* p) {
  return {Floats{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])}};
}
template <class T>
inline void store(T* p, V a) {
  for (int l = 0; l < W; l++) p[l] = from_float<T>(a.v[l]);
}
inline V fma(V a, V b, V c) { return {a.v * b.v + c.v}; }
inline V add(V a, V b) { return {a.v + b.v}; }
inline V sub(V a, V b) { return {a.v - b.v}; }
inline V mul(V a, V b) { return {a.v * b.v}; }
inline V div(V a, V b) { return {a.v / b.v}; }
inline V max(V a, V b) { return {a.v > b.v ? a.v : b.v}; }
inline V min(V a, V b) { return {a.v < b.v ? a.v : b.v}; }
inline V held(V a) { return a; }
inline Words held(Words a) { return a; }
inline uint32_t at_least(V a, V b) {
  uint32_t bits = 0;
  for (int l = 0; l < W; l++) bits |= uint32_t(a.v[l] >= b.v[l]) << l;
  return bits;
}
inline V select(uint32_t bits, V a, V b) {
  for (int l = 0; l < W; l++) a.v[l] = (bits >> l) & 1 ? a.v[l] : b.v[l];
  return a;
}
inline long pack(uint32_t bits, V a, long first, float* values, int32_t* places) {
  float lanes[W];
  store(lanes, a);
  long some = 0;
  for (; bits != 0; bits &= bits - 1) {
    int lane = __builtin_ctz(bits);
    values[some] = lanes[lane];
    places[some++] = int32_t(first + lane);
  }
  return some;
}
inline float sum(V a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
// The nearest integer, as a float; for magnitudes below 2^22.
inline V round(V a) {
  Floats shift = set1(0x1.8p23f).v;
  return {(a.v + shift) - shift};
}
// 2 to the power of an integer in [-126, 127].
inline V exponent(V a) { return {(Floats)((__builtin_convertvector(a.v, Signed) + 127) << 23)}; }

// The sum of each of W vectors, in their order.
inline V lane_sums(const V (&v)[W]) {
  float sums[W];
  for (int l = 0; l < W; l++) sums[l] = sum(v[l]);
  return load(sums);
}

inline void transpose(Words (&a)[W]) {
  for (int i = 0; i < W; i++)
    for (int j = 0; j < i; j++) {
      uint32_t kept = a[i].v[j];
      a[i].v[j] = a[j].v[i];
      a[j].v[i] = kept;
    }
}
inline Words bits_of(V a) { return {(Unsigned)a.v}; }
inline V floats_of(Words a) { return {(Floats)a.v}; }

// Elements `stride` apart.
inline V gather(const float* p, int stride) {
  return {Floats{p[0], p[stride], p[2 * stride], p[3 * stride]}};
}
inline Words load_words(const uint32_t* p) { return {Unsigned{p[0], p[1], p[2], p[3]}}; }
// The first `count` words, then zeros.
inline Words load_words(const uint32_t* p, int count) {
  uint32_t words[W] = {};
  for (int l = 0; l < count; l++) words[l] = p[l];
  return load_words(words);
}
inline Words gather_words(const uint32_t* p, ptrdiff_t stride) {
  return {Unsigned{p[0], p[stride], p[2 * stride], p[3 * stride]}};
}
// The number of `Bits` bits that starts at bit `shift` of every lane.
template <int Bits>
inline V digit(Words w, int shift) {
  return {__builtin_convertvector((Signed)((w.v >> shift) & ((1u << Bits) - 1)), Floats)};
}
// A row's next `count` scales, each spread over W / count lanes; only the first `given` are there and read.
struct Spread {
  int lanes;
  explicit Spread(int count) : lanes(W / count) {}
  template <class T>
  inline V operator()(const T* p, int given) const {
    if (lanes == W) return set1(to_float(*p));
    float values[W] = {};
    for (int l = 0; l < given * lanes; l++) values[l] = to_float(p[l / lanes]);
    return load(values);
  }
};
// Whether a lane can take its digit out of words in registers; here it cannot.
constexpr bool kUnpacksWords = false;
template <int Bits>
V unpack(Words w, int j);
inline V load_bytes(const uint8_t* p) { return {Floats{float(p[0]), float(p[1]), float(p[2]), float(p[3])}}; }
// W digits of four bits, the lowest of a byte first.
inline V load_nibbles(const uint8_t* p) {
  return {Floats{float(p[0] & 15), float(p[0] >> 4), float(p[1] & 15), float(p[1] >> 4)}};
}
// The lowest eight numbers of `Bits` bits, one to a byte.
template <int Bits>
inline uint64_t to_bytes(uint64_t bits) {
  uint64_t spread = 0;
  for (int i = 0; i < 8; i++) spread |= ((bits >> (i * Bits)) & ((1u << Bits) - 1)) << (8 * i);
  return spread;
}

}  // namespace mlx_serving::cpu::scalar
