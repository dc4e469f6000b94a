#include "attention.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "pool.hpp"
#include "scratch.hpp"

namespace mlx_serving::cpu {
namespace {

// From this many queries to a key on, scores are matrix products of packed tiles; from the second number on, keys and
// values are packed whole for all threads, not part by part where they are used.
constexpr long kManyQueries = 10, kVeryManyQueries = 512;
// Columns of one such product.
constexpr long kTileColumns = 128;
// Columns one thread takes of a row and head, where few queries read many.
constexpr long kPartColumns = 512;

const char* at(const Heads& heads, long row, long head, long column) {
  return static_cast<const char*>(heads.values) +
         (row * heads.row_stride + head * heads.head_stride + column * heads.column_stride) * long(size_of(heads.type));
}

// So many columns of a quantised slab, of one row and head.
QuantizedMatrix columns_of(const Slab& slab, long size, long row, long head, long first, long count) {
  long column = row * slab.heads.row_stride + head * slab.heads.head_stride + first;
  long scales = column * (size / slab.group) * long(size_of(slab.heads.type));
  return {static_cast<const uint32_t*>(slab.heads.values) + column * (size * slab.bits / 32),
          static_cast<const char*>(slab.scales) + scales,
          static_cast<const char*>(slab.biases) + scales,
          slab.heads.type, count, size, slab.group, slab.bits};
}

struct Work {
  const AttentionShape& shape;
  const Heads& queries;
  const Slab& keys;
  const Slab& values;
  const int* lengths;
  float scale;
  bool causal;

  long group() const { return shape.heads / shape.kv_heads; }
  // Queries that share a key: [tokens][group].
  long shared() const { return shape.tokens * group(); }
  long visible(long row, long query) const {
    return causal ? lengths[row] - shape.tokens + query / group() + 1 : lengths[row];
  }

  // Query `query` of those that share a key, scaled.
  void load_query(long row, long kv_head, long query, float* target) const {
    kernels().widen(at(queries, row, kv_head * group() + query % group(), query / group()), queries.type, target,
                    shape.size);
    for (long d = 0; d < shape.size; d++) target[d] *= scale;
  }

  // Columns [first, first + count) in float: in place where they are, else in `scratch`.
  const float* columns(const Slab& slab, long row, long head, long first, long count, float* scratch,
                       long& stride) const {
    if (slab.scales == nullptr && slab.heads.type == Type::f32) {
      stride = slab.heads.column_stride;
      return reinterpret_cast<const float*>(at(slab.heads, row, head, first));
    }
    stride = shape.size;
    if (slab.scales == nullptr) {
      for (long c = 0; c < count; c++)
        kernels().widen(at(slab.heads, row, head, first + c), slab.heads.type, scratch + c * stride, shape.size);
      return scratch;
    }
    kernels().widen_quantized(columns_of(slab, shape.size, row, head, first, count), scratch);
    return scratch;
  }

  void write(long row, long kv_head, long query, const float* sums, float total, void* out) const {
    static thread_local Scratch line;
    float* result = line.floats(size_t(shape.size));
    for (long d = 0; d < shape.size; d++) result[d] = sums[d] / total;
    long head = kv_head * group() + query % group(), token = query / group();
    long offset = ((row * shape.tokens + token) * shape.heads + head) * shape.size;
    kernels().narrow(result, static_cast<char*>(out) + offset * long(size_of(queries.type)), queries.type, shape.size);
  }
};

// What remains of some columns: for each query its largest score, total weight and sums.
struct Part {
  std::vector<float> memory;
  SoftmaxState state(long queries) {
    return {memory.data(), memory.data() + queries, memory.data() + 2 * queries};
  }
  void reset(long queries, long size) {
    memory.assign(size_t(queries * (2 + size)), 0.0f);
    std::fill(memory.begin(), memory.begin() + queries, -INFINITY);
  }
};

void attend_part(const Work& work, long row, long kv_head, long begin, long end, SoftmaxState state) {
  static thread_local Scratch query_scratch, key_scratch, value_scratch;
  long count = work.shared(), size = work.shape.size;
  float* queries = query_scratch.floats(size_t(count * size));
  for (long q = 0; q < count; q++) work.load_query(row, kv_head, q, queries + q * size);
  float* keys = key_scratch.floats(size_t(kFewColumns * size));
  float* values = value_scratch.floats(size_t(kFewColumns * size));
  std::vector<long> visible(static_cast<size_t>(count));
  for (long first = begin; first < end; first += kFewColumns) {
    long columns = std::min(kFewColumns, end - first), key_stride, value_stride;
    const float* block_keys = work.columns(work.keys, row, kv_head, first, columns, keys, key_stride);
    const float* block_values = work.columns(work.values, row, kv_head, first, columns, values, value_stride);
    for (long q = 0; q < count; q++) visible[size_t(q)] = work.visible(row, q) - first;
    kernels().attend_few(queries, count, size, block_keys, key_stride, block_values, value_stride, columns,
                         visible.data(), state);
  }
}

void join(const Work& work, long row, long kv_head, Part* parts, long count, void* out) {
  long queries = work.shared(), size = work.shape.size;
  SoftmaxState whole = parts[0].state(queries);
  for (long p = 1; p < count; p++) {
    SoftmaxState part = parts[p].state(queries);
    for (long q = 0; q < queries; q++) {
      float most = std::max(whole.most[q], part.most[q]);
      if (part.total[q] == 0.0f) continue;
      float kept = std::exp(whole.most[q] - most), added = std::exp(part.most[q] - most);
      whole.most[q] = most;
      whole.total[q] = whole.total[q] * kept + part.total[q] * added;
      for (long d = 0; d < size; d++)
        whole.sums[q * size + d] = whole.sums[q * size + d] * kept + part.sums[q * size + d] * added;
    }
  }
  for (long q = 0; q < queries; q++) work.write(row, kv_head, q, whole.sums + q * size, whole.total[q], out);
}

// Each thread takes some columns of a row and head at a time, by `attend`, and their parts are joined.
template <class Attend>
void attend_by_parts(const Work& work, void* out, Attend attend) {
  const AttentionShape& shape = work.shape;
  static thread_local std::vector<Part> parts;
  long longest = *std::max_element(work.lengths, work.lengths + shape.rows);
  long each = (longest + kPartColumns - 1) / kPartColumns, pairs = shape.rows * shape.kv_heads;
  parts.resize(std::max(parts.size(), size_t(pairs * each)));
  Part* mine = parts.data();
  auto part = [&](int chunk) {
    long pair = chunk / each, row = pair / shape.kv_heads;
    long begin = chunk % each * kPartColumns, end = std::min<long>(work.lengths[row], begin + kPartColumns);
    mine[chunk].reset(work.shared(), shape.size);
    if (begin < end) attend(work, row, pair % shape.kv_heads, begin, end, mine[chunk].state(work.shared()));
    if (each == 1) join(work, row, pair % shape.kv_heads, mine + chunk, 1, out);
  };
  parallel(int(pairs * each), part);
  if (each == 1) return;
  for (long pair = 0; pair < pairs; pair++)
    join(work, pair / shape.kv_heads, pair % shape.kv_heads, mine + pair * each, each, out);
}

// Keys of columns from `begin` on of one row and head, packed as right operands; values in float, [columns][size padded
// to whole tiles].
struct Panels {
  long begin;
  long columns;  // padded to whole tiles of kTileColumns
  long width;    // of values
  std::vector<float> keys, values;

  void resize(const Work& work, long first, long end) {
    const Kernels& k = kernels();
    begin = first;
    columns = (end - first + kTileColumns - 1) / kTileColumns * kTileColumns;
    width = (work.shape.size + k.tile_columns - 1) / k.tile_columns * k.tile_columns;
    keys.resize(size_t(columns * work.shape.size));
    values.resize(size_t(columns * width));
  }

  // One block of kTileColumns columns; zeros stand for what there is not.
  void fill(const Work& work, long row, long head, long first) {
    static thread_local Scratch scratch;
    const Kernels& k = kernels();
    long size = work.shape.size, count = std::min<long>(kTileColumns, work.lengths[row] - first), stride;
    float* wide = scratch.floats(size_t(kTileColumns * size));
    const float* block = work.columns(work.keys, row, head, first, count, wide, stride);
    DenseMatrix matrix{block, Type::f32, count, size, stride};
    for (long c = 0; c < kTileColumns; c += k.tile_columns)
      k.pack_dense(matrix, std::min(c, count - 1), 0, size, keys.data() + (first - begin + c) * size);
    block = work.columns(work.values, row, head, first, count, wide, stride);
    for (long d = 0; d < width; d += k.tile_columns) {
      float* panel = values.data() + d * columns + (first - begin) * k.tile_columns;
      long given = std::min<long>(k.tile_columns, size - d);
      for (long c = 0; c < kTileColumns; c++, panel += k.tile_columns) {
        long some = c < count ? given : 0;
        std::copy_n(block + c * stride + d, some, panel);
        std::fill(panel + some, panel + k.tile_columns, 0.0f);
      }
    }
  }
};

// The queries from `first` on that make a tile, over the columns in `panels`; `finish` is given each one's number, largest
// score, total weight and sums.
template <class Finish>
void attend_tile(const Work& work, const Panels& panels, long row, long kv_head, long first, Finish finish) {
  static thread_local Scratch scratch;
  const Kernels& k = kernels();
  long size = work.shape.size, tile = k.tile_rows, count = std::min(tile, work.shared() - first);
  float* queries = scratch.floats(size_t(tile * (2 * size + 2 * kTileColumns + panels.width + 2)));
  float* packed = queries + tile * size;
  float* scores = packed + tile * size;
  float* weights = scores + tile * kTileColumns;
  float* sums = weights + tile * kTileColumns;
  float* most = sums + tile * panels.width;
  SoftmaxState state{most, most + tile, sums};
  std::fill(most, most + tile, -INFINITY);
  std::fill(state.total, state.total + tile, 0.0f);
  std::fill(sums, sums + tile * panels.width, 0.0f);
  for (long q = 0; q < count; q++) work.load_query(row, kv_head, first + q, queries + q * size);
  k.pack_left(queries, size, count, 0, size, packed);
  long last = std::min(work.visible(row, first + count - 1) - panels.begin, panels.columns);
  long visible[kMostTileRows];
  for (long block = 0; block < last; block += kTileColumns) {
    for (long q = 0; q < tile; q++)
      visible[q] = q < count ? work.visible(row, first + q) - panels.begin - block : 1;
    for (long c = 0; c < kTileColumns; c += k.tile_columns)
      k.tile_product(packed, panels.keys.data() + (block + c) * size, size, false, scores + c, kTileColumns, tile,
                     k.tile_columns);
    k.weigh_tile(scores, kTileColumns, panels.width, visible, state, weights);
    for (long d = 0; d < panels.width; d += k.tile_columns)
      k.tile_product(weights, panels.values.data() + d * panels.columns + block * k.tile_columns, kTileColumns, true,
                     sums + d, panels.width, tile, k.tile_columns);
  }
  for (long q = 0; q < count; q++) finish(first + q, most[q], state.total[q], sums + q * panels.width);
}

void attend_packed_part(const Work& work, long row, long kv_head, long begin, long end, SoftmaxState state) {
  static thread_local Panels panels;
  long size = work.shape.size;
  panels.resize(work, begin, end);
  for (long first = begin; first < end; first += kTileColumns) panels.fill(work, row, kv_head, first);
  auto keep = [&](long query, float most, float total, const float* sums) {
    state.most[query] = most;
    state.total[query] = total;
    std::copy_n(sums, size, state.sums + query * size);
  };
  for (long first = 0; first < work.shared(); first += kernels().tile_rows)
    attend_tile(work, panels, row, kv_head, first, keep);
}

void attend_many_queries(const Work& work, void* out) {
  const AttentionShape& shape = work.shape;
  static thread_local std::vector<Panels> panels;
  long pairs = shape.rows * shape.kv_heads;
  panels.resize(std::max(panels.size(), size_t(pairs)));
  Panels* mine = panels.data();
  for (long pair = 0; pair < pairs; pair++) mine[pair].resize(work, 0, work.lengths[pair / shape.kv_heads]);
  long blocks = *std::max_element(work.lengths, work.lengths + shape.rows);
  blocks = (blocks + kTileColumns - 1) / kTileColumns;
  auto fill = [&](int chunk) {
    long pair = chunk / blocks, row = pair / shape.kv_heads, first = chunk % blocks * kTileColumns;
    if (first < work.lengths[row]) mine[pair].fill(work, row, pair % shape.kv_heads, first);
  };
  parallel(int(pairs * blocks), fill);
  long tiles = (work.shared() + kernels().tile_rows - 1) / kernels().tile_rows;
  auto tile = [&](int chunk) {
    long pair = chunk / tiles, row = pair / shape.kv_heads, kv_head = pair % shape.kv_heads;
    auto write = [&](long query, float, float total, const float* sums) {
      work.write(row, kv_head, query, sums, total, out);
    };
    attend_tile(work, mine[pair], row, kv_head, chunk % tiles * kernels().tile_rows, write);
  };
  parallel(int(pairs * tiles), tile);
}

// One column of a quantised slab.
void write_quantized(const Heads& source, const Slab& slab, long size, long row, long head, long token, long column) {
  static thread_local Scratch scratch;
  const Kernels& k = kernels();
  long groups = size / slab.group;
  float* wide = scratch.floats(size_t(size + 2 * groups));
  float* scales = wide + size;
  float* biases = scales + groups;
  k.widen(at(source, row, head, token), source.type, wide, size);
  QuantizedMatrix place = columns_of(slab, size, row, head, column, 1);
  k.quantize(wide, size, slab.group, slab.bits, const_cast<uint32_t*>(place.weight), scales, biases);
  k.narrow(scales, const_cast<void*>(place.scales), place.type, groups);
  k.narrow(biases, const_cast<void*>(place.biases), place.type, groups);
}

void write_columns(const Heads& source, const Slab& slab, const AttentionShape& shape, const int* first) {
  size_t bytes = size_t(shape.size) * size_of(source.type);
  for (long row = 0; row < shape.rows; row++)
    for (long head = 0; head < shape.kv_heads; head++)
      for (long token = 0; token < shape.tokens; token++) {
        long column = first[row] + token;
        if (slab.scales != nullptr) write_quantized(source, slab, shape.size, row, head, token, column);
        else std::memcpy(const_cast<char*>(at(slab.heads, row, head, column)), at(source, row, head, token), bytes);
      }
}

}  // namespace

std::vector<int> clamped(const int* lengths, const AttentionShape& shape, int added) {
  std::vector<int> safe(static_cast<size_t>(shape.rows));
  for (size_t row = 0; row < safe.size(); row++)
    safe[row] = int(std::clamp<long>(long(lengths[row]) + added, shape.tokens, shape.capacity));
  return safe;
}

void attend_in_place(const AttentionShape& shape, const Heads& queries, const Heads& new_keys, const Heads& new_values,
                     const Slab& slab_keys, const Slab& slab_values, const int* lengths, float scale, void* out) {
  std::vector<int> ends = clamped(lengths, shape, int(shape.tokens)), first = ends;
  for (int& column : first) column -= int(shape.tokens);
  write_columns(new_keys, slab_keys, shape, first.data());
  write_columns(new_values, slab_values, shape, first.data());
  attend(shape, queries, slab_keys, slab_values, ends.data(), scale, true, out);
}

void attend(const AttentionShape& shape, const Heads& queries, const Slab& keys, const Slab& values,
            const int* lengths, float scale, bool causal, void* out) {
  Work work{shape, queries, keys, values, lengths, scale, causal};
  if (work.shared() < kManyQueries) attend_by_parts(work, out, attend_part);
  else if (work.shared() < kVeryManyQueries) attend_by_parts(work, out, attend_packed_part);
  else attend_many_queries(work, out);
}

}  // namespace mlx_serving::cpu
