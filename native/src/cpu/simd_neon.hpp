// Four lanes of the 64-bit Arm architecture.
#pragma once

#include <arm_neon.h>

#include "types.hpp"

namespace mlx_serving::cpu::neon {

struct V {
  float32x4_t v;
};
struct Words {
  uint32x4_t v;
};
constexpr int W = 4;
constexpr int kRegisters = 32;
constexpr int kTileRows = 6;
constexpr int kTileVectors = 4;

inline V set1(float x) { return {vdupq_n_f32(x)}; }
inline V zero() { return set1(0.0f); }
inline V load(const float* p) { return {vld1q_f32(p)}; }
inline V load(const half_t* p) {
  return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))))};
}
inline V load(const bfloat_t* p) {
  return {vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p)), 16))};
}
inline void store(float* p, V a) { vst1q_f32(p, a.v); }
inline void store(half_t* p, V a) {
  vst1_u16(reinterpret_cast<uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32(a.v)));
}
inline void store(bfloat_t* p, V a) {
  float lanes[W];
  store(lanes, a);
  for (int l = 0; l < W; l++) p[l] = to_bfloat(lanes[l]);
}
inline V fma(V a, V b, V c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
inline V add(V a, V b) { return {vaddq_f32(a.v, b.v)}; }
inline V sub(V a, V b) { return {vsubq_f32(a.v, b.v)}; }
inline V mul(V a, V b) { return {vmulq_f32(a.v, b.v)}; }
inline V div(V a, V b) { return {vdivq_f32(a.v, b.v)}; }
inline V max(V a, V b) { return {vmaxq_f32(a.v, b.v)}; }
inline V min(V a, V b) { return {vminq_f32(a.v, b.v)}; }
// Instructions of this processor have no operand in memory.
inline V held(V a) { return a; }
inline Words held(Words a) { return a; }
inline uint32_t at_least(V a, V b) {
  uint32x4_t lane_bits = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32(vcgeq_f32(a.v, b.v), lane_bits));
}
inline V select(uint32_t bits, V a, V b) {
  uint32x4_t lane_bits = {1, 2, 4, 8};
  return {vbslq_f32(vtstq_u32(vdupq_n_u32(bits), lane_bits), a.v, b.v)};
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
inline float sum(V a) { return vaddvq_f32(a.v); }
inline V round(V a) { return {vrndnq_f32(a.v)}; }
inline V exponent(V a) {
  return {vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(a.v), vdupq_n_s32(127)), 23))};
}

inline V lane_sums(const V (&v)[W]) {
  return {vpaddq_f32(vpaddq_f32(v[0].v, v[1].v), vpaddq_f32(v[2].v, v[3].v))};
}

inline void transpose(Words (&a)[W]) {
  uint32x4x2_t low = vzipq_u32(a[0].v, a[2].v), high = vzipq_u32(a[1].v, a[3].v);
  uint32x4x2_t first = vzipq_u32(low.val[0], high.val[0]), second = vzipq_u32(low.val[1], high.val[1]);
  a[0] = {first.val[0]};
  a[1] = {first.val[1]};
  a[2] = {second.val[0]};
  a[3] = {second.val[1]};
}
inline Words bits_of(V a) { return {vreinterpretq_u32_f32(a.v)}; }
inline V floats_of(Words a) { return {vreinterpretq_f32_u32(a.v)}; }

// Elements `stride` apart.
inline V gather(const float* p, int stride) {
  float lanes[W] = {p[0], p[stride], p[2 * stride], p[3 * stride]};
  return load(lanes);
}
inline Words load_words(const uint32_t* p) { return {vld1q_u32(p)}; }
// The first `count` words, then zeros.
inline Words load_words(const uint32_t* p, int count) {
  uint32_t words[W] = {};
  for (int l = 0; l < count; l++) words[l] = p[l];
  return load_words(words);
}
inline Words gather_words(const uint32_t* p, ptrdiff_t stride) {
  uint32_t lanes[W] = {p[0], p[stride], p[2 * stride], p[3 * stride]};
  return load_words(lanes);
}
template <int Bits>
inline V digit(Words w, int shift) {
  uint32x4_t moved = vshlq_u32(w.v, vdupq_n_s32(-shift));
  return {vcvtq_f32_u32(vandq_u32(moved, vdupq_n_u32((1u << Bits) - 1)))};
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
inline V load_bytes(const uint8_t* p) {
  float lanes[W] = {float(p[0]), float(p[1]), float(p[2]), float(p[3])};
  return load(lanes);
}
// W digits of four bits, the lowest of a byte first.
inline V load_nibbles(const uint8_t* p) {
  float lanes[W] = {float(p[0] & 15), float(p[0] >> 4), float(p[1] & 15), float(p[1] >> 4)};
  return load(lanes);
}
template <int Bits>
inline uint64_t to_bytes(uint64_t bits) {
  uint64_t spread = 0;
  for (int i = 0; i < 8; i++) spread |= ((bits >> (i * Bits)) & ((1u << Bits) - 1)) << (8 * i);
  return spread;
}

}  // namespace mlx_serving::cpu::neon
