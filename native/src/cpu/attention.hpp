// Attention over slabs of keys and values, over all threads. No MLX, no Python.
#pragma once

#include <vector>

#include "kernels.hpp"

namespace mlx_serving::cpu {

// An array [rows][heads][columns][size] of any strides but the last, which is 1; strides count elements.
struct Heads {
  const void* values;
  Type type;
  long row_stride;
  long head_stride;
  long column_stride;
};

// Keys or values: as they are, or quantised along the head size in groups. Then `scales` is set, and `heads` has the words
// of the digits, the type of scales and biases, and strides that count columns: in each of the three arrays a column
// follows the one before it without a gap.
struct Slab {
  Heads heads;
  const void* scales = nullptr;
  const void* biases = nullptr;
  int bits = 0;
  int group = 0;
};

struct AttentionShape {
  long rows;
  long heads;
  long kv_heads;
  long tokens;  // queries a row
  long size;    // of a head, a multiple of 16
  long capacity;
};

// out [rows][tokens][heads][size]. Row r reads its first lengths[r] columns; with `causal`, query t only the first
// lengths[r] - tokens + t + 1 of them. `lengths` is at least 1, and at least `tokens` if causal.
void attend(const AttentionShape& shape, const Heads& queries, const Slab& keys, const Slab& values,
            const int* lengths, float scale, bool causal, void* out);

// lengths[row] + added for every row, within what `attend` takes.
std::vector<int> clamped(const int* lengths, const AttentionShape& shape, int added);

// Writes the new keys and values [rows][kv_heads][tokens][size] into the slabs from column lengths[row] on, quantised if
// these are, then attends, causally, to what stands there and all before it.
void attend_in_place(const AttentionShape& shape, const Heads& queries, const Heads& new_keys, const Heads& new_values,
                     const Slab& slab_keys, const Slab& slab_values, const int* lengths, float scale, void* out);

}  // namespace mlx_serving::cpu
