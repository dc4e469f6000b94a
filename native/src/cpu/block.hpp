// A decoder layer around its attention, in two calls. No MLX, no Python.
#pragma once

#include <vector>

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

}  // namespace mlx_serving::cpu
