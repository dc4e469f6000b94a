// Eight lanes. Included where kernels_avx2.cpp has switched its instructions on.
#pragma once

#include "types.hpp"

namespace mlx_serving::cpu::avx2 {

struct V {
  __m256 v;
};
struct Words {
  __m256i v;
};
constexpr int W = 8;
constexpr int kRegisters = 16;
constexpr int kTileRows = 6;
constexpr int kTileVectors = 2;

inline V set1(float x) { return {_mm256_set1_ps(x)}; }
inline V zero() { return {_mm256_setzero_ps()}; }
inline V load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline V load(const half_t* p) { return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p))}; }
inline V widen(__m128i bits) { return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))}; }
inline V load(const bfloat_t* p) { return widen(_mm_loadu_si128((const __m128i*)p)); }
inline void store(float* p, V a) { _mm256_storeu_ps(p, a.v); }
inline void store(half_t* p, V a) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline void store(bfloat_t* p, V a) {
  float lanes[W];
  store(lanes, a);
  for (int l = 0; l < W; l++) p[l] = to_bfloat(lanes[l]);
}
inline V fma(V a, V b, V c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline V add(V a, V b) { return {_mm256_add_ps(a.v, b.v)}; }
inline V sub(V a, V b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline V mul(V a, V b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline V div(V a, V b) { return {_mm256_div_ps(a.v, b.v)}; }
inline V max(V a, V b) { return {_mm256_max_ps(a.v, b.v)}; }
inline V min(V a, V b) { return {_mm256_min_ps(a.v, b.v)}; }
inline V held(V a) {
  asm("" : "+x"(a.v));
  return a;
}
inline Words held(Words a) {
  asm("" : "+x"(a.v));
  return a;
}
inline uint32_t at_least(V a, V b) { return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_GE_OQ))); }
inline V select(uint32_t bits, V a, V b) {
  __m256i lane_bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  __m256i chosen = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(int(bits)), lane_bits), lane_bits);
  return {_mm256_blendv_ps(b.v, a.v, _mm256_castsi256_ps(chosen))};
}
inline long pack(uint32_t bits, V a, long first, float* values, int32_t* places) {
  uint64_t bytes = _pdep_u64(bits, 0x0101010101010101ull) * 0xff;
  __m128i packed = _mm_cvtsi64_si128(int64_t(_pext_u64(0x0706050403020100ull, bytes)));
  __m256i lanes = _mm256_cvtepu8_epi32(packed);
  _mm256_storeu_ps(values, _mm256_permutevar8x32_ps(a.v, lanes));
  _mm256_storeu_si256((__m256i*)places, _mm256_add_epi32(lanes, _mm256_set1_epi32(int(first))));
  return __builtin_popcount(bits);
}
inline float sum(V a) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
inline V round(V a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline V exponent(V a) {
  return {_mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(a.v), _mm256_set1_epi32(127)), 23))};
}

// The sum of each of W vectors, in their order.
inline V lane_sums(const V (&v)[W]) {
  float sums[W];
  for (int l = 0; l < W; l++) sums[l] = sum(v[l]);
  return load(sums);
}

inline void transpose(Words (&a)[W]) {
  __m256i b[W];
  for (int i = 0; i < W; i += 2) {
    b[i] = _mm256_unpacklo_epi32(a[i].v, a[i + 1].v);
    b[i + 1] = _mm256_unpackhi_epi32(a[i].v, a[i + 1].v);
  }
  for (int i = 0; i < W; i += 4) {
    a[i] = {_mm256_unpacklo_epi64(b[i], b[i + 2])};
    a[i + 1] = {_mm256_unpackhi_epi64(b[i], b[i + 2])};
    a[i + 2] = {_mm256_unpacklo_epi64(b[i + 1], b[i + 3])};
    a[i + 3] = {_mm256_unpackhi_epi64(b[i + 1], b[i + 3])};
  }
  for (int i = 0; i < 4; i++) {
    __m256i low = _mm256_permute2x128_si256(a[i].v, a[i + 4].v, 0x20);
    a[i + 4] = {_mm256_permute2x128_si256(a[i].v, a[i + 4].v, 0x31)};
    a[i] = {low};
  }
}
inline Words bits_of(V a) { return {_mm256_castps_si256(a.v)}; }
inline V floats_of(Words a) { return {_mm256_castsi256_ps(a.v)}; }

// Elements `stride` apart.
inline V gather(const float* p, int stride) {
  __m256i lanes = _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(stride));
  return {_mm256_i32gather_ps(p, lanes, 4)};
}
inline Words load_words(const uint32_t* p) { return {_mm256_loadu_si256((const __m256i*)p)}; }
// The first `count` words, then zeros.
inline Words load_words(const uint32_t* p, int count) {
  uint32_t words[W] = {};
  for (int l = 0; l < count; l++) words[l] = p[l];
  return load_words(words);
}
inline Words gather_words(const uint32_t* p, ptrdiff_t stride) {
  __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return {_mm256_i32gather_epi32((const int*)p, _mm256_mullo_epi32(lanes, _mm256_set1_epi32(int(stride))), 4)};
}
template <int Bits>
inline V digit(Words w, int shift) {
  __m256i moved = _mm256_srl_epi32(w.v, _mm_cvtsi32_si128(shift));
  return {_mm256_cvtepi32_ps(_mm256_and_si256(moved, _mm256_set1_epi32((1 << Bits) - 1)))};
}
// Digits 8 * j to 8 * j + 7 of a block of 32 in the first `Bits` words. Those that end in the word after the one they begin
// in take their highest bits from there.
constexpr bool kUnpacksWords = true;
template <int Bits>
inline V unpack(Words w, int j) {
  __m256i bit = _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(Bits));
  bit = _mm256_add_epi32(bit, _mm256_set1_epi32(j * W * Bits));
  __m256i word = _mm256_srli_epi32(bit, 5), shift = _mm256_and_si256(bit, _mm256_set1_epi32(31));
  __m256i low = _mm256_srlv_epi32(_mm256_permutevar8x32_epi32(w.v, word), shift);
  __m256i next = _mm256_permutevar8x32_epi32(w.v, _mm256_add_epi32(word, _mm256_set1_epi32(1)));
  __m256i high = _mm256_sllv_epi32(next, _mm256_sub_epi32(_mm256_set1_epi32(32), shift));
  return {_mm256_cvtepi32_ps(_mm256_and_si256(_mm256_or_si256(low, high), _mm256_set1_epi32((1 << Bits) - 1)))};
}
// A row's next `count` scales (1, 2, 4 or 8), each spread over W / count lanes; only the first `given` are there and
// read.
struct Spread {
  __m256i lanes;
  int count;
  explicit Spread(int wanted) : count(wanted) {
    alignas(32) int index[W];
    for (int l = 0; l < W; l++) index[l] = l / (W / count);
    lanes = _mm256_load_si256((const __m256i*)index);
  }
  template <class T>
  inline V operator()(const T* p, int given) const {
    if (given == count) return spread(p);
    T copy[W] = {};
    for (int i = 0; i < given; i++) copy[i] = p[i];
    return spread(copy);
  }

 private:
  inline V spread(const float* p) const {
    if (count == 1) return set1(*p);
    if (count == 8) return load(p);
    __m128 values = count == 4 ? _mm_loadu_ps(p) : _mm_castsi128_ps(_mm_loadl_epi64((const __m128i*)p));
    return {_mm256_permutevar8x32_ps(_mm256_castps128_ps256(values), lanes)};
  }
  inline __m128i bits(const void* p) const {
    if (count == 8) return _mm_loadu_si128((const __m128i*)p);
    if (count == 4) return _mm_loadl_epi64((const __m128i*)p);
    if (count == 2) return _mm_loadu_si32(p);
    return _mm_loadu_si16(p);
  }
  inline V spread(const half_t* p) const { return {_mm256_permutevar8x32_ps(_mm256_cvtph_ps(bits(p)), lanes)}; }
  inline V spread(const bfloat_t* p) const { return {_mm256_permutevar8x32_ps(widen(bits(p)).v, lanes)}; }
};
inline V load_bytes(const uint8_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)))};
}
// W digits of four bits, the lowest of a byte first.
inline V load_nibbles(const uint8_t* p) {
  __m128i bytes = _mm_loadu_si32(p), lowest = _mm_set1_epi8(15);
  __m128i digits = _mm_unpacklo_epi8(_mm_and_si128(bytes, lowest), _mm_and_si128(_mm_srli_epi16(bytes, 4), lowest));
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(digits))};
}
template <int Bits>
inline uint64_t to_bytes(uint64_t bits) {
  return _pdep_u64(bits, 0x0101010101010101ull * ((1u << Bits) - 1));
}

}  // namespace mlx_serving::cpu::avx2
