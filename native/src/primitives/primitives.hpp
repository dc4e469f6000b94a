// The kernels as operations of MLX's graph: lazy, on the CPU stream, in its order.
//
// Each function checks its arguments when the graph is built and throws std::invalid_argument, which Python sees as
// ValueError. Arrays may have any strides; those a kernel does not take are copied first.
#pragma once

#include <mlx/mlx.h>

#include <optional>

namespace mlx_serving {

namespace mx = mlx::core;

// x [..., k] times the transpose of an affinely quantised matrix [n, k]; gives [..., n] in x's type. Weight, scales and
// biases are all [n, ...] or all in panels.
mx::array quantized_matmul(const mx::array& x, const mx::array& weight, const mx::array& scales,
                           const mx::array& biases, int group_size, int bits);

// Whether this processor multiplies with panels.
bool takes_panels();
// A matrix [n, k] as panels [n / 32, k, 32]: rows next to each other, element by element; n is a multiple of 32.
mx::array to_panels(const mx::array& matrix);
// The same for words of digits, which panels have in an order of their own with 5 and 6 bits (cpu/panels.hpp).
mx::array digits_to_panels(const mx::array& weight, int bits);
// Rows of a matrix as it is or in panels.
int matrix_rows(const mx::array& weight);
// Throws std::invalid_argument unless these panels can be multiplied with here.
void check_panels(const mx::array& weight, const mx::array& scales, int bits);

// x [..., k] times the transpose of a dense matrix [n, k] of its own type, accumulated in float32; in x's type.
mx::array matmul(const mx::array& x, const mx::array& weight);

// x / sqrt(mean(x^2) + eps) * weight over the last axis, in the type x and weight have in common.
mx::array rms_norm(const mx::array& x, const std::optional<mx::array>& weight, float eps);
// (x - mean) / sqrt(variance + eps) * weight + bias over the last axis; weight and bias are of one type.
mx::array layer_norm(const mx::array& x, const std::optional<mx::array>& weight, const std::optional<mx::array>& bias,
                     float eps);

// silu(gate) * x and gelu(gate) * x, the tanh approximation; both of one shape and type.
mx::array swiglu(const mx::array& gate, const mx::array& x);
mx::array geglu(const mx::array& gate, const mx::array& x);

// x [rows, heads, tokens, size] with its first `dims` elements rotated by positions offset[row] + token: `offset` is
// one int32 or [rows]. Either `base` or `freqs` [dims / 2], positions a radian, is given.
mx::array rope(const mx::array& x, int dims, bool traditional, std::optional<float> base, float scale,
               const mx::array& offset, const std::optional<mx::array>& freqs);

// Attention of queries [rows, heads, tokens, size] to keys and values [rows, kv heads, columns, size]; with `causal`
// the last query sees all columns, each one before one less.
mx::array attention(const mx::array& queries, const mx::array& keys, const mx::array& values, float scale, bool causal);
// The same over slabs [slots, kv heads, capacity, size], row i in slot i, of which row i holds lengths[i] columns, the
// ones of these queries included; causal.
mx::array slab_attention(const mx::array& queries, const mx::array& keys, const mx::array& values,
                         const mx::array& lengths, float scale);
// The same over slabs quantised along the head size: [values, scales, biases] each.
mx::array quantized_slab_attention(const mx::array& queries, const std::vector<mx::array>& keys,
                                   const std::vector<mx::array>& values, const mx::array& lengths, float scale,
                                   int group_size, int bits);
// Writes keys and values [rows, kv heads, tokens, size] into the slabs' own memory from column lengths[row] on, then
// attends as slab_attention does. Nobody else may read those columns before. A slab whose last axis has gaps, or whose
// elements share places, gets memory of its own first.
mx::array attend_in_place(const mx::array& queries, const mx::array& keys, const mx::array& values,
                          const mx::array& slab_keys, const mx::array& slab_values, const mx::array& lengths,
                          float scale);
// The same over quantised slabs: the new keys and values, of the type of the scales, are quantised as mx.quantize does.
mx::array attend_quantized_in_place(const mx::array& queries, const mx::array& keys, const mx::array& values,
                                    const std::vector<mx::array>& slab_keys, const std::vector<mx::array>& slab_values,
                                    const mx::array& lengths, float scale, int group_size, int bits);

// Tokens int32 [rows] drawn from logits [rows, vocabulary]: -1 where these are not finite, 0 where a mask leaves none.
// `masks` [rows, ceil(vocabulary / 32)] uint32 has a bit for each token that may be drawn; `floats` [rows, 4] are
// 1 / temperature (0: greedy), top-p, min-p and the number in [0, 1) that decides; `limits` [rows] int32 is top-k.
mx::array draw(const mx::array& logits, const std::optional<mx::array>& masks, const mx::array& floats,
               const mx::array& limits);
// Logits [rows, vocabulary] as float32, each row's adjusted by what stands at its place in `bias` and
// `counts` float32 and `seen` bool, [some, vocabulary] each, and `penalties` [some, 3] float32: of repetition, presence
// and frequency; as they are where `places` int32 [rows] is -1. `counts` and `seen` come together.
mx::array adjust(const mx::array& logits, const mx::array& places, const std::optional<mx::array>& bias,
                 const std::optional<mx::array>& counts, const std::optional<mx::array>& seen,
                 const mx::array& penalties);

}  // namespace mlx_serving
