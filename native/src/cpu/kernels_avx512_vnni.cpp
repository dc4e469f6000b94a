// The kernels of AVX-512 with products of bytes: products with quantised matrices in panels.
//
// VPDPBUSD adds four products of an unsigned and a signed byte to each of 16 integers, exactly, in the time AVX-512 needs for
// one product of floats a lane. Digits of a matrix are unsigned bytes as they are. Each block of a row of x, with one scale, is
// rounded to integers of 22 to 24 bits, which is about as exact as floats, and split into three planes of bytes. Sums are
// exact within a block; there they become floats, and meet the block's scale and the matrix's own.
#if defined(__x86_64__)
#include <cstring>

#include "kernels.hpp"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c,bmi2")
#include <immintrin.h>

namespace mlx_serving::cpu::avx512_vnni {
namespace {

constexpr int kPlanes = 3;
// Bits of a digit that lie in its word's lower parts; the others, of 5 and 6, lie in words of their own (panels.hpp).
template <int Bits>
constexpr int kLow = Bits == 8 ? 8 : 4;
// The largest integer of x: so that no byte of its planes overflows, and with digits of 4 bits a block's whole sum is an
// integer of 32 bits.
template <int Bits, int Block>
constexpr float kLargest = Bits > 4 ? 8355000.0f : Block == 64 ? 2236900.0f : 4473900.0f;
// Blocks of smaller numbers are zeros: their scale's inverse would not be a float.
constexpr float kSmallest = 1e-30f;
// How far ahead of its use a matrix is fetched, in bytes of digits, and in groups of scales.
constexpr long kBytesAhead = 8192;
constexpr long kGroupsAhead = 8;

// Columns that share a scale of x and, in the matrix, a scale and a bias: 32 or 64.
constexpr int block_of(int group) {
  return group < 64 ? group : 64;
}

// Of a block and `rows` rows of x: for each row its planes, one byte a column each, in the order in which digits leave
// their words; then each row's scale; then each row's sum.
constexpr long record_bytes(int block, long rows) {
  return rows * (kPlanes * block + 2 * long(sizeof(float)));
}

template <int Bits, int Block>
void split_block(const float* x, char* planes, float* scale, float* sum) {
  constexpr int kVectors = Block / 16;
  __m512 values[kVectors], most = _mm512_setzero_ps(), total = _mm512_setzero_ps();
  for (int i = 0; i < kVectors; i++) {
    values[i] = _mm512_loadu_ps(x + 16 * i);
    most = _mm512_max_ps(most, _mm512_abs_ps(values[i]));
    total = _mm512_add_ps(total, values[i]);
  }
  float largest = _mm512_reduce_max_ps(most);
  __m512 inverse = _mm512_set1_ps(largest > kSmallest ? kLargest<Bits, Block> / largest : 0.0f);
  *scale = largest / kLargest<Bits, Block>;
  // Not finite if any of x is not, and with it the result.
  *sum = _mm512_reduce_add_ps(total);
  // A word's parts of 4 bits leave it as two vectors of bytes: every other one, then those between.
  const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
  for (int i = 0; i < kVectors; i++) {
    __m512i integers = _mm512_cvtps_epi32(_mm512_mul_ps(values[i], inverse));
    for (int plane = 0; plane < kPlanes; plane++) {
      __m128i bytes = _mm512_cvtepi32_epi8(integers);
      __m512i lowest = _mm512_cvtepi8_epi32(bytes);
      if constexpr (kLow<Bits> == 4) bytes = _mm_shuffle_epi8(bytes, order);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(planes + plane * Block + 16 * i), bytes);
      integers = _mm512_srai_epi32(_mm512_sub_epi32(integers, lowest), 8);
    }
  }
}

template <int Bits, int Block>
void split_blocks(const float* x, long count, long columns, char* planes) {
  for (long start = 0; start < columns; start += Block, planes += record_bytes(Block, count)) {
    float* scales = reinterpret_cast<float*>(planes + count * kPlanes * Block);
    for (long m = 0; m < count; m++)
      split_block<Bits, Block>(x + m * columns + start, planes + m * kPlanes * Block, scales + m, scales + count + m);
  }
}

// The compiler's own form of this copies its sums from register to register.
inline void add_products(__m512i& sums, __m512i digits, __m512i bytes) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(digits), "v"(bytes));
}

// Vector `index` of the scales or biases at `values`.
inline __m512 floats_at(const void* values, Type type, long index) {
  if (type == Type::f32) return _mm512_loadu_ps(static_cast<const float*>(values) + 16 * index);
  __m256i halves = _mm256_loadu_si256(static_cast<const __m256i*>(values) + index);
  if (type == Type::f16) return _mm512_cvtph_ps(halves);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

inline void prefetch(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
}

// The planes' sums as one.
template <int Bits>
inline __m512 joined(const __m512i (&sums)[kPlanes]) {
  __m512i lower = _mm512_add_epi32(_mm512_slli_epi32(sums[1], 8), sums[0]);
  if constexpr (Bits == 4) return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(sums[2], 16), lower));
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[2]), _mm512_set1_ps(65536.0f), _mm512_cvtepi32_ps(lower));
}

// Digits of 4 + Width bits: their lower four are those of `low`, the others the `place`-th Width bits of each byte of `high`.
template <int Width>
inline __m512i with_high(__m512i low, __m512i high, int place) {
  int left = 4 - place * Width;
  __m512i moved = left > 0 ? _mm512_slli_epi32(high, unsigned(left)) : _mm512_srli_epi32(high, unsigned(-left));
  constexpr int kOrAnd = 0xf8;  // a | (b & c)
  return _mm512_ternarylogic_epi32(low, moved, _mm512_set1_epi8(((1 << Width) - 1) << 4), kOrAnd);
}

// Adds to y [Rows][kPanelRows] the products of a panel with rows of x in planes.
template <int Bits, int Block, int Rows>
void multiply_panel(const QuantizedMatrix& panel, const char* planes, float* y) {
  constexpr int kVectors = kPanelRows / 16;
  constexpr int kParts = 8 / kLow<Bits>;
  // Bits of a digit beside its lower ones, and words whose digits share one word of these.
  constexpr int kHigh = Bits - kLow<Bits>;
  constexpr int kWords = kHigh ? 4 / kHigh : 1;
  constexpr int kStep = kWords + (kHigh ? 1 : 0);
  constexpr int kSteps = Block * Bits / 32 / kStep;
  const __m512i low = _mm512_set1_epi8((1 << kLow<Bits>) - 1);
  const char* words = reinterpret_cast<const char*>(panel.weight);
  long blocks = panel.columns / Block;
  int shift = panel.group > Block ? 1 : 0;
  for (long block = 0; block < blocks; block++, planes += record_bytes(Block, Rows)) {
    __m512i sums[kVectors][Rows][kPlanes];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; v++)
#pragma GCC unroll 4
      for (int m = 0; m < Rows; m++)
#pragma GCC unroll 3
        for (int plane = 0; plane < kPlanes; plane++) sums[v][m][plane] = _mm512_setzero_si512();
#pragma GCC unroll 1
    for (int step = 0; step < kSteps; step++, words += 64 * kVectors * kStep) {
      __m512i high[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; v++) {
        if constexpr (kHigh != 0) high[v] = _mm512_loadu_si512(words + 64 * (kWords * kVectors + v));
#pragma GCC unroll 5
        for (int word = 0; word < kStep; word++) prefetch(words + 64 * (word * kVectors + v) + kBytesAhead);
      }
#pragma GCC unroll 8
      for (int part = 0; part < kWords * kParts; part++) {
        __m512i digits[kVectors];
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; v++) {
          digits[v] = _mm512_loadu_si512(words + 64 * (part / kParts * kVectors + v));
          if constexpr (kParts == 2)
            digits[v] = _mm512_and_si512(part % 2 == 0 ? digits[v] : _mm512_srli_epi32(digits[v], 4), low);
          if constexpr (kHigh != 0) digits[v] = with_high<kHigh>(digits[v], high[v], part);
        }
        const char* bytes = planes + (step * kWords * kParts + part) * 4;
#pragma GCC unroll 4
        for (int m = 0; m < Rows; m++)
#pragma GCC unroll 3
          for (int plane = 0; plane < kPlanes; plane++) {
            int32_t four;
            std::memcpy(&four, bytes + (m * kPlanes + plane) * Block, 4);
            __m512i same = _mm512_set1_epi32(four);
#pragma GCC unroll 2
            for (int v = 0; v < kVectors; v++) add_products(sums[v][m][plane], digits[v], same);
          }
      }
    }
    // Here too the sums are in registers: otherwise the compiler keeps them in memory as well, and is twice as slow.
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; v++)
#pragma GCC unroll 4
      for (int m = 0; m < Rows; m++)
#pragma GCC unroll 3
        for (int plane = 0; plane < kPlanes; plane++) asm("" : "+v"(sums[v][m][plane]));
    const float* scales = reinterpret_cast<const float*>(planes + Rows * kPlanes * Block);
    long group = block >> shift;
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; v++) {
      __m512 scale = floats_at(panel.scales, panel.type, group * kVectors + v);
      __m512 bias = floats_at(panel.biases, panel.type, group * kVectors + v);
#pragma GCC unroll 4
      for (int m = 0; m < Rows; m++) {
        __m512 whole = joined<Bits>(sums[v][m]);
        float* out = y + m * kPanelRows + 16 * v;
        __m512 result = _mm512_fmadd_ps(_mm512_set1_ps(scales[Rows + m]), bias, _mm512_loadu_ps(out));
        _mm512_storeu_ps(out, _mm512_fmadd_ps(_mm512_mul_ps(whole, _mm512_set1_ps(scales[m])), scale, result));
      }
    }
    long ahead = (group + kGroupsAhead) * kPanelRows * long(size_of(panel.type));
    prefetch(static_cast<const char*>(panel.scales) + ahead);
    prefetch(static_cast<const char*>(panel.biases) + ahead);
  }
}

using MultiplyPanel = void (*)(const QuantizedMatrix& panel, const char* planes, float* y);

template <int Bits, int Block>
constexpr MultiplyPanel kMultiply[kPanelTile] = {multiply_panel<Bits, Block, 1>, multiply_panel<Bits, Block, 2>,
                                                 multiply_panel<Bits, Block, 3>, multiply_panel<Bits, Block, 4>};

template <int Block>
const MultiplyPanel* multiply_of(int bits) {
  switch (bits) {
    case 4: return kMultiply<4, Block>;
    case 5: return kMultiply<5, Block>;
    case 6: return kMultiply<6, Block>;
    default: return kMultiply<8, Block>;
  }
}

using SplitBlocks = void (*)(const float* x, long count, long columns, char* planes);

template <int Block>
SplitBlocks split_of(int bits) {
  return bits == 4 ? split_blocks<4, Block> : bits == 8 ? split_blocks<8, Block> : split_blocks<6, Block>;
}

}  // namespace

long panel_bytes(long columns, int group) {
  return columns / block_of(group) * record_bytes(block_of(group), 1);
}

void split_planes(const float* x, long count, long columns, int group, int bits, char* planes) {
  auto split = block_of(group) == 32 ? split_of<32>(bits) : split_of<64>(bits);
  split(x, count, columns, planes);
}

void panel_product(const QuantizedMatrix& matrix, long first, long last, const char* planes, long count, float* y,
                   long y_stride) {
  const MultiplyPanel* of =
      block_of(matrix.group) == 32 ? multiply_of<32>(matrix.bits) : multiply_of<64>(matrix.bits);
  MultiplyPanel multiply = of[count - 1];
  QuantizedMatrix panel = matrix;
  for (long row = first; row < last; row += kPanelRows) {
    long scales = row * matrix.row_groups() * long(size_of(matrix.type));
    panel.weight = matrix.weight + row * matrix.row_words();
    panel.scales = static_cast<const char*>(matrix.scales) + scales;
    panel.biases = static_cast<const char*>(matrix.biases) + scales;
    float sums[kPanelTile * kPanelRows] = {};
    multiply(panel, planes, sums);
    for (long m = 0; m < count; m++)
      std::memcpy(y + m * y_stride + row, sums + m * kPanelRows, kPanelRows * sizeof(float));
  }
}

}  // namespace mlx_serving::cpu::avx512_vnni
#pragma GCC pop_options
#endif
