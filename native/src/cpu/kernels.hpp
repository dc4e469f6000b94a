// The kernels of one instruction set, as a table of plain functions on one thread. No MLX, no Python.
//
// Each kernel's source is written once, in kernels/*.inl, over the vector type of simd_*.hpp, and compiled for every
// instruction set in a file kernels_*.cpp of its own.
#pragma once

#include "types.hpp"

namespace mlx_serving::cpu {

// An affinely quantised matrix as MLX stores it: value(n, k) = digit(n, k) * scale(n, k / group) + bias(n, k / group),
// digits packed without gaps, lowest bits first, rows contiguous.
struct QuantizedMatrix {
  const uint32_t* weight;
  const void* scales;
  const void* biases;
  Type type;  // of scales and biases
  long rows;
  long columns;
  int group;  // a multiple of 32 that divides columns
  int bits;   // 2, 3, 4, 5, 6 or 8
  // Whether kPanelRows rows lie side by side, word by word, and so do their scales and biases, group by group. Only
  // with 4, 5, 6 or 8 bits (panels.hpp), complete panels, and where the processor has `panel_product`.
  bool in_panels = false;

  long row_words() const { return columns * bits / 32; }
  long row_groups() const { return columns / group; }
};

// A dense matrix with contiguous rows `stride` elements apart.
struct DenseMatrix {
  const void* weight;
  Type type;
  long rows;
  long columns;
  long stride;
};

// Rows of a panel: two vectors of AVX-512.
constexpr long kPanelRows = 32;
// Rows of x that meet a panel at once, at most: sums of more do not stay in registers.
constexpr int kPanelTile = 4;

enum class Activation { silu, gelu };

// What a running softmax keeps of each row: its largest score, the sum of weights, and the weighted sum of values.
struct SoftmaxState {
  float* most;
  float* total;
  float* sums;  // [rows][head size]
};

// The largest of a row's logits that may be drawn, and the first place that has it; -1 if none is above -inf.
struct Peak {
  float most;
  long place;
  bool is_finite;  // the row has no NaN and no +inf, and something above -inf, whatever may be drawn
};

// Weights that one partial sum of `weigh` takes in.
constexpr long kWeighBlock = 512;

// Elements that `collect` may write beyond those it returns.
constexpr long kVectorRoom = 16;

// What is added to a row's logits and taken off them, [count] each; null pointers where there is nothing.
struct Adjustment {
  const float* bias;
  const float* counts;  // how often each token was said
  const bool* seen;     // whether it was said or asked with
  float repetition, presence, frequency;
};

// Rows of a packed left operand, at most, in any instruction set.
constexpr int kMostTileRows = 16;

// Columns that attend_few takes at once.
constexpr long kFewColumns = 64;

struct Kernels {
  const char* name;
  int tile_rows;     // of packed left operands
  int tile_columns;  // of packed right operands

  // Floats that one row of `columns` values takes once arranged for digits of `bits` bits.
  long (*arranged_size)(long columns, int bits);
  // Arranges a row so that it lines up with the digits of a word; fills what is beyond `columns` with zeros.
  void (*arrange)(const float* x, long columns, int bits, float* arranged);
  // y[m, n] = sum over k of x[m, k] * matrix[n, k], for the rows n in [first, last) and all `count` rows of x, which
  // are arranged and `arranged_size` apart.
  void (*quantized_rows)(const QuantizedMatrix& matrix, long first, long last, const float* arranged, long count,
                         float* y, long y_stride);
  // The same for x as it is, `x_stride` apart, and a dense matrix.
  void (*dense_rows)(const DenseMatrix& matrix, long first, long last, const float* x, long x_stride, long count,
                     float* y, long y_stride);

  // Products with panels, where digits stay bytes; null where the processor cannot multiply these. x is split into
  // planes of bytes for it, panel_bytes a row.
  long (*panel_bytes)(long columns, int group);
  // The planes of `count` rows of x, up to kPanelTile, for digits of `bits` bits in groups of `group`.
  void (*split_planes)(const float* x, long count, long columns, int group, int bits, char* planes);
  // As quantized_rows, for the rows [first, last), whole panels, and x in planes.
  void (*panel_product)(const QuantizedMatrix& matrix, long first, long last, const char* planes, long count, float* y,
                        long y_stride);

  // Packs rows [first, first + tile_rows) of x, of which `count` exist, columns [begin, end).
  void (*pack_left)(const float* x, long x_stride, long count, long begin, long end, float* packed);
  // Packs tile_columns rows of a matrix from row `first` on, columns [begin, end); begin and end are multiples of 32.
  void (*pack_quantized)(const QuantizedMatrix& matrix, long first, long begin, long end, float* packed);
  void (*pack_dense)(const DenseMatrix& matrix, long first, long begin, long end, float* packed);
  // y[m, n] (+)= product of two packed tiles of `depth` columns; writes `rows` by `columns` of it.
  void (*tile_product)(const float* left, const float* right, long depth, bool accumulate, float* y, long y_stride,
                       long rows, long columns);

  // Conversions of `count` elements.
  void (*widen)(const void* source, Type type, float* target, long count);
  void (*narrow)(const float* source, void* target, Type type, long count);

  // Rows of `columns` floats; see norm.inl.
  void (*rms_norm)(const float* x, const float* weight, float eps, float* y, long columns);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, float* y, long columns);
  // y = activation(gate) * x.
  void (*gate)(Activation activation, const float* gate, const float* x, float* y, long count);
  // The first 2 * half elements of a head, rotated; cosines and sines are [half].
  void (*rotate)(const float* x, const float* cosines, const float* sines, long half, bool traditional, float* y);

  // Attention to up to kFewColumns columns for a few rows of queries [rows][size], scaled already; row r sees the first
  // visible[r] columns. The head size is a multiple of 16.
  void (*attend_few)(const float* queries, long rows, long size, const float* keys, long key_stride,
                     const float* values, long value_stride, long columns, const long* visible, SoftmaxState state);
  // The softmax of a tile of scores [tile_rows][columns], columns a multiple of 16; packs the weights as a left operand.
  void (*weigh_tile)(float* scores, long columns, long size, const long* visible, SoftmaxState state, float* packed);
  // All rows of a matrix that is quantised to 4 or 8 bits, as floats.
  void (*widen_quantized)(const QuantizedMatrix& matrix, float* target);
  // `count` numbers, whole groups, as digits of 4 or 8 bits, and a scale and a bias for each group: what mx.quantize
  // gives, bit for bit, for numbers that are finite.
  void (*quantize)(const float* x, long count, int group, int bits, uint32_t* words, float* scales, float* biases);

  // Of logits whose bit in `mask` is set, of all for a null mask; with a mask, `masked` gets the others as -inf.
  Peak (*peak)(const float* logits, const uint32_t* mask, long count, float* masked);
  // weights = exp((logits - most) * factor), 0 below exp(-87); sums[i] is that of the i-th kWeighBlock of them. With
  // null for weights these are only summed.
  void (*weigh)(const float* logits, float most, float factor, long count, float* weights, float* sums);
  // Such weights of those whose exponents are at least `least`, in order, and their places; returns their number. Both
  // have room for count + kVectorRoom.
  long (*collect)(const float* logits, float most, float factor, float least, long count, float* found, int32_t* places);
  // y = logits + bias; those seen divided by `repetition` where positive, else times it; less what was said costs.
  void (*adjust)(const float* logits, const Adjustment& adjustment, long count, float* y);
};

// The best table for this processor, or the one named by use_instructions.
const Kernels& kernels();
// Chooses "avx512_vnni", "avx512", "avx2", "neon" or "scalar"; false, and nothing changed, if this processor or build has it not.
bool use_instructions(const char* name);

namespace scalar {
extern const Kernels table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
// What joins the table of AVX-512 where the processor has its products of bytes. A table of this file's own would have to be
// filled while the library is loaded, by its instructions, which the processor may not have.
namespace avx512_vnni {
long panel_bytes(long columns, int group);
void split_planes(const float* x, long count, long columns, int group, int bits, char* planes);
void panel_product(const QuantizedMatrix& matrix, long first, long last, const char* planes, long count, float* y,
                   long y_stride);
}  // namespace avx512_vnni
#elif defined(__aarch64__)
namespace neon {
extern const Kernels table;
}
#endif

}  // namespace mlx_serving::cpu
