#include "block.hpp"

#include "scratch.hpp"

namespace mlx_serving::cpu {
namespace {

void normalise(const BlockNorm& norm, const float* x, long count, long columns, float* y) {
  rms_norm({x, Type::f32, count, columns}, norm.weight, norm.type, norm.eps, y, Type::f32);
}

long columns_of(const Projection& layer) {
  return layer.is_quantized ? layer.quantized.columns : layer.dense.columns;
}

void rotate_heads(const BlockShape& shape, long rows, long tokens, long heads, const int* offsets, float* values) {
  Rotation rotation{rows, heads, tokens, shape.size, shape.traditional, shape.rope_scale, shape.frequencies};
  Heads place{values, Type::f32, tokens * heads * shape.size, shape.size, heads * shape.size};
  rotate(rotation, place, offsets, place);
}

}  // namespace

void enter_block(const Block& block, const float* x, long rows, long tokens, const int* offsets, float* queries,
                 float* keys, float* values) {
  static thread_local Scratch scratch;
  long count = rows * tokens, columns = columns_of(block.q);
  float* normal = scratch.floats(size_t(count * columns));
  normalise(block.first, x, count, columns, normal);
  const Projection layers[] = {block.q, block.k, block.v};
  float* const outputs[] = {queries, keys, values};
  project(layers, 3, normal, count, columns, outputs);
  rotate_heads(block.shape, rows, tokens, block.shape.heads, offsets, queries);
  rotate_heads(block.shape, rows, tokens, block.shape.kv_heads, offsets, keys);
}

void leave_block(const Block& block, const float* x, const float* attended, long count, float* out) {
  static thread_local Scratch scratch;
  long columns = block.o.rows(), inner = block.up.rows();
  float* residual = scratch.floats(size_t(count * (2 * columns + 2 * inner)));
  float* normal = residual + count * columns;
  float* gates = normal + count * columns;
  float* ups = gates + count * inner;
  project(&block.o, 1, attended, count, columns_of(block.o), &residual);
  for (long i = 0; i < count * columns; i++) residual[i] += x[i];
  normalise(block.second, residual, count, columns, normal);
  const Projection layers[] = {block.gate, block.up};
  float* const outputs[] = {gates, ups};
  project(layers, 2, normal, count, columns, outputs);
  gate(Activation::silu, gates, ups, gates, Type::f32, count * inner);
  project(&block.down, 1, gates, count, inner, &out);
  for (long i = 0; i < count * columns; i++) out[i] += residual[i];
}

}  // namespace mlx_serving::cpu
