// A decoder layer around its attention, in two calls; and many of them over slabs, in one. No MLX, no Python.
#pragma once

#include <vector>

#include "attention.hpp"
#include "elementwise.hpp"

namespace mlx_serving::cpu {

struct BlockShape {
  long heads, kv_heads, size;  // of attention
  bool traditional;
  float rope_scale;
  std::vector<float> frequencies;
};

struct BlockNorm {
  const void* weight;
  Type type;
  float eps;
};

struct Block {
  BlockShape shape;
  BlockNorm first, second;
  Projection q, k, v, o, gate, up, down;
};

// Queries, keys and values [rows][tokens][heads][size] of x [rows][tokens][columns]: norm, projections, rotation.
void enter_block(const Block& block, const float* x, long rows, long tokens, const int* offsets, float* queries,
                 float* keys, float* values);
// What the layer makes of x [count][columns] and what its heads attended to, [count][heads][size].
void leave_block(const Block& block, const float* x, const float* attended, long count, float* out);

// Rows whose slabs belong together; `lengths` [rows] before the new tokens, `keys` and `values` one a layer.
struct StackGroup {
  long rows;
  long capacity;
  const int* lengths;
  std::vector<Slab> keys, values;
};

// Layer after layer: x [rows of all groups][tokens][columns] to out of that shape. Keys and values of the new tokens are
// written into the slabs.
void run_stack(const std::vector<const Block*>& blocks, const std::vector<StackGroup>& groups, const float* x,
               long tokens, float scale, float* out);

}  // namespace mlx_serving::cpu
