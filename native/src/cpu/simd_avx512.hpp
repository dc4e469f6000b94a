// Sixteen lanes. Included where kernels_avx512.cpp has switched its instructions on.
#pragma once

#include "types.hpp"

namespace mlx_serving::cpu::avx512 {

struct V {
  __m512 v;
};
struct Words {
  __m512i v;
};
constexpr int W = 16;
constexpr int kRegisters = 32;
constexpr int kTileRows = 12;
constexpr int kTileVectors = 2;

inline V set1(float x) { return {_mm512_set1_ps(x)}; }
inline V zero() { return {_mm512_setzero_ps()}; }
inline V load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline V load(const half_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
inline V widen(__m256i bits) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))}; }
inline V load(const bfloat_t* p) { return widen(_mm256_loadu_si256((const __m256i*)p)); }
inline void store(float* p, V a) { _mm512_storeu_ps(p, a.v); }
inline void store(half_t* p, V a) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline void store(bfloat_t* p, V a) {
  __m512i bits = _mm512_castps_si512(a.v);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
inline V fma(V a, V b, V c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline V add(V a, V b) { return {_mm512_add_ps(a.v, b.v)}; }
inline V sub(V a, V b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline V mul(V a, V b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline V div(V a, V b) { return {_mm512_div_ps(a.v, b.v)}; }
inline V max(V a, V b) { return {_mm512_max_ps(a.v, b.v)}; }
inline V min(V a, V b) { return {_mm512_min_ps(a.v, b.v)}; }
// The value in a register: compilers would rather load it again for each use, and loads are what is short.
inline V held(V a) {
  asm("" : "+v"(a.v));
  return a;
}
inline Words held(Words a) {
  asm("" : "+v"(a.v));
  return a;
}
// A bit for each lane, the first lane's lowest: whether a >= b, which no NaN is.
inline uint32_t at_least(V a, V b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }
// Lanes of `a` whose bit is set, of `b` elsewhere.
inline V select(uint32_t bits, V a, V b) { return {_mm512_mask_blend_ps(__mmask16(bits), b.v, a.v)}; }
// The lanes whose bit is set, one after another, and `first` plus their numbers; returns how many. Writes up to W of each.
inline long pack(uint32_t bits, V a, long first, float* values, int32_t* places) {
  __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  __m512i numbers = _mm512_add_epi32(lanes, _mm512_set1_epi32(int(first)));
  _mm512_storeu_ps(values, _mm512_maskz_compress_ps(__mmask16(bits), a.v));
  _mm512_storeu_si512(places, _mm512_maskz_compress_epi32(__mmask16(bits), numbers));
  return __builtin_popcount(bits);
}
inline float sum(V a) { return _mm512_reduce_add_ps(a.v); }
inline V round(V a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline V exponent(V a) {
  return {_mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(a.v), _mm512_set1_epi32(127)), 23))};
}

// The sum of each of 16 vectors, in their order: pairs are folded while they are interleaved.
inline V lane_sums(const V (&v)[W]) {
  __m512 a[8], b[4], c[2];
  for (int i = 0; i < 8; i++)
    a[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[2 * i].v, v[2 * i + 1].v), _mm512_unpackhi_ps(v[2 * i].v, v[2 * i + 1].v));
  for (int i = 0; i < 4; i++)
    b[i] = _mm512_add_ps(_mm512_shuffle_ps(a[2 * i], a[2 * i + 1], 0x44), _mm512_shuffle_ps(a[2 * i], a[2 * i + 1], 0xee));
  for (int i = 0; i < 2; i++)
    c[i] = _mm512_add_ps(_mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0x88),
                         _mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0xdd));
  return {_mm512_add_ps(_mm512_shuffle_f32x4(c[0], c[1], 0x88), _mm512_shuffle_f32x4(c[0], c[1], 0xdd))};
}

// Lane j of vector i becomes lane i of vector j.
inline void transpose(Words (&a)[W]) {
  __m512i b[W];
  for (int i = 0; i < W; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i].v, a[i + 1].v);
    b[i + 1] = _mm512_unpackhi_epi32(a[i].v, a[i + 1].v);
  }
  for (int i = 0; i < W; i += 4) {
    a[i] = {_mm512_unpacklo_epi64(b[i], b[i + 2])};
    a[i + 1] = {_mm512_unpackhi_epi64(b[i], b[i + 2])};
    a[i + 2] = {_mm512_unpacklo_epi64(b[i + 1], b[i + 3])};
    a[i + 3] = {_mm512_unpackhi_epi64(b[i + 1], b[i + 3])};
  }
  for (int i = 0; i < 4; i++) {
    __m512i even = _mm512_shuffle_i32x4(a[i].v, a[i + 4].v, 0x88), odd = _mm512_shuffle_i32x4(a[i].v, a[i + 4].v, 0xdd);
    __m512i more_even = _mm512_shuffle_i32x4(a[i + 8].v, a[i + 12].v, 0x88);
    __m512i more_odd = _mm512_shuffle_i32x4(a[i + 8].v, a[i + 12].v, 0xdd);
    a[i] = {_mm512_shuffle_i32x4(even, more_even, 0x88)};
    a[i + 4] = {_mm512_shuffle_i32x4(odd, more_odd, 0x88)};
    a[i + 8] = {_mm512_shuffle_i32x4(even, more_even, 0xdd)};
    a[i + 12] = {_mm512_shuffle_i32x4(odd, more_odd, 0xdd)};
  }
}
inline Words bits_of(V a) { return {_mm512_castps_si512(a.v)}; }
inline V floats_of(Words a) { return {_mm512_castsi512_ps(a.v)}; }

// Elements `stride` apart.
inline V gather(const float* p, int stride) {
  __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return {_mm512_i32gather_ps(_mm512_mullo_epi32(lanes, _mm512_set1_epi32(stride)), p, 4)};
}
inline Words load_words(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
// The first `count` words, then zeros.
inline Words load_words(const uint32_t* p, int count) {
  return {_mm512_maskz_loadu_epi32(__mmask16((1u << count) - 1), p)};
}
inline Words gather_words(const uint32_t* p, ptrdiff_t stride) {
  __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return {_mm512_i32gather_epi32(_mm512_mullo_epi32(lanes, _mm512_set1_epi32(int(stride))), p, 4)};
}
// Up to four bits a permutation of a table gives the float at once: it looks at the lowest four bits of a lane only.
template <int Bits>
inline V digit(Words w, int shift) {
  __m512i moved = _mm512_srli_epi32(w.v, unsigned(shift));
  if constexpr (Bits == 4) {
    __m512 table = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return {_mm512_permutexvar_ps(moved, table)};
  } else if constexpr (Bits == 2) {
    __m512 table = _mm512_setr_ps(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3);
    return {_mm512_permutexvar_ps(moved, table)};
  } else {
    return {_mm512_cvtepi32_ps(_mm512_and_si512(moved, _mm512_set1_epi32((1 << Bits) - 1)))};
  }
}
// Digits 16 * j to 16 * j + 15 of a block of 32 in the first `Bits` words. Those that end in the word after the one they
// begin in take their highest bits from there.
constexpr bool kUnpacksWords = true;
template <int Bits>
inline V unpack(Words w, int j) {
  __m512i bit = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                   _mm512_set1_epi32(Bits));
  bit = _mm512_add_epi32(bit, _mm512_set1_epi32(j * W * Bits));
  __m512i word = _mm512_srli_epi32(bit, 5), shift = _mm512_and_si512(bit, _mm512_set1_epi32(31));
  __m512i low = _mm512_srlv_epi32(_mm512_permutexvar_epi32(word, w.v), shift);
  __m512i next = _mm512_permutexvar_epi32(_mm512_add_epi32(word, _mm512_set1_epi32(1)), w.v);
  __m512i high = _mm512_sllv_epi32(next, _mm512_sub_epi32(_mm512_set1_epi32(32), shift));
  return {_mm512_cvtepi32_ps(_mm512_and_si512(_mm512_or_si512(low, high), _mm512_set1_epi32((1 << Bits) - 1)))};
}
// A row's next `count` scales, each spread over W / count lanes; only the first `given` are there and read.
struct Spread {
  __m512i lanes;
  explicit Spread(int count) {
    alignas(64) int index[W];
    for (int l = 0; l < W; l++) index[l] = l / (W / count);
    lanes = _mm512_load_si512(index);
  }
  static inline __mmask16 mask(int given) { return __mmask16((1u << given) - 1); }
  inline V operator()(const float* p, int given) const {
    return {_mm512_permutexvar_ps(lanes, _mm512_maskz_loadu_ps(mask(given), p))};
  }
  inline V operator()(const half_t* p, int given) const {
    return {_mm512_permutexvar_ps(lanes, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask(given), p)))};
  }
  inline V operator()(const bfloat_t* p, int given) const {
    return {_mm512_permutexvar_ps(lanes, widen(_mm256_maskz_loadu_epi16(mask(given), p)).v)};
  }
};
inline V load_bytes(const uint8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)))};
}
// W digits of four bits, the lowest of a byte first.
inline V load_nibbles(const uint8_t* p) {
  __m128i bytes = _mm_loadl_epi64((const __m128i*)p), lowest = _mm_set1_epi8(15);
  __m128i digits = _mm_unpacklo_epi8(_mm_and_si128(bytes, lowest), _mm_and_si128(_mm_srli_epi16(bytes, 4), lowest));
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(digits))};
}
template <int Bits>
inline uint64_t to_bytes(uint64_t bits) {
  return _pdep_u64(bits, 0x0101010101010101ull * ((1u << Bits) - 1));
}

}  // namespace mlx_serving::cpu::avx512
