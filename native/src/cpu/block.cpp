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

void run_stack(const std::vector<const Block*>& blocks, const std::vector<StackGroup>& groups, const float* x,
               long tokens, float scale, float* out) {
  static thread_local Scratch scratch;
  const BlockShape& shape = blocks.front()->shape;
  std::vector<int> lengths;
  for (const StackGroup& group : groups) lengths.insert(lengths.end(), group.lengths, group.lengths + group.rows);
  long rows = long(lengths.size()), count = rows * tokens;
  long query_row = tokens * shape.heads * shape.size, key_row = tokens * shape.kv_heads * shape.size;
  float* queries = scratch.floats(size_t(2 * rows * (query_row + key_row)));
  float* keys = queries + rows * query_row;
  float* values = keys + rows * key_row;
  float* attended = values + rows * key_row;
  for (size_t layer = 0; layer < blocks.size(); layer++) {
    const float* input = layer == 0 ? x : out;
    enter_block(*blocks[layer], input, rows, tokens, lengths.data(), queries, keys, values);
    long first = 0;
    for (const StackGroup& group : groups) {
      AttentionShape attention{group.rows, shape.heads, shape.kv_heads, tokens, shape.size, group.capacity};
      auto part = [&](const float* of, long row, long heads) {
        return Heads{of + first * row, Type::f32, row, shape.size, heads * shape.size};
      };
      attend_in_place(attention, part(queries, query_row, shape.heads), part(keys, key_row, shape.kv_heads),
                      part(values, key_row, shape.kv_heads), group.keys[layer], group.values[layer], group.lengths,
                      scale, attended + first * query_row);
      first += group.rows;
    }
    leave_block(*blocks[layer], input, attended, count, out);
  }
}

}  // namespace mlx_serving::cpu
