#include "products.hpp"

#include <algorithm>

#include "pool.hpp"
#include "scratch.hpp"

namespace mlx_serving::cpu {
namespace {

// Up to this many rows the matrix is widened again for every few of them, which costs less than packing it.
constexpr long kFewRows = 20;
// Columns of a packed panel: with the tile's columns it stays within the second-level cache.
constexpr long kDepth = 2048;
// Bytes of planes that meet a panel before the next one does: with the panel they stay within the second-level cache.
constexpr long kPlanesBytes = 768 * 1024;
// A matrix of fewer multiplications than this is not worth waking another thread for.
constexpr long kSmall = 30000;

// Chunks for `rows` rows: several a thread, so that a thread whose core is taken holds the others up less.
struct Split {
  long step;
  int chunks;
  Split(long rows, long multiple, long work) {
    long wanted = work < kSmall ? 1 : long(threads()) * 4;
    step = std::max<long>(multiple, (rows / wanted + multiple - 1) / multiple * multiple);
    chunks = int((rows + step - 1) / step);
  }
};

const float* as_floats(const Rows& x, Scratch& scratch) {
  if (x.type == Type::f32) return static_cast<const float*>(x.values);
  float* wide = scratch.floats(size_t(x.count * x.columns));
  kernels().widen(x.values, x.type, wide, x.count * x.columns);
  return wide;
}

// Where results in float go before they are narrowed; the output itself if it is in float.
struct Target {
  float* values;
  long stride;
  Target(const Output& y, long rows, long columns, Scratch& scratch)
      : values(y.type == Type::f32 ? static_cast<float*>(y.values) : scratch.floats(size_t(rows * columns))),
        stride(y.type == Type::f32 ? y.stride : columns) {}
  void finish(const Output& y, long rows, long columns) const {
    if (y.type == Type::f32) return;
    for (long m = 0; m < rows; m++)
      kernels().narrow(values + m * stride, static_cast<char*>(y.values) + m * y.stride * 2, y.type, columns);
  }
};

template <class Pack>
void tiled(long matrix_rows, long depth, const float* x, long count, const Target& y, const Pack& pack) {
  static thread_local Scratch left_scratch;
  const Kernels& k = kernels();
  long tiles = (count + k.tile_rows - 1) / k.tile_rows;
  long panel = k.tile_rows * depth;
  float* left = left_scratch.floats(size_t(tiles * panel));
  auto pack_tile = [&](int tile) {
    long first = long(tile) * k.tile_rows;
    for (long begin = 0; begin < depth; begin += kDepth)
      k.pack_left(x + first * depth, depth, count - first, begin, std::min(depth, begin + kDepth),
                  left + tile * panel + begin * k.tile_rows);
  };
  parallel(int(tiles), pack_tile);
  auto column = [&](int chunk) {
    static thread_local Scratch right_scratch;
    float* right = right_scratch.floats(size_t(k.tile_columns * std::min(depth, kDepth)));
    long first = long(chunk) * k.tile_columns;
    for (long begin = 0; begin < depth; begin += kDepth) {
      long end = std::min(depth, begin + kDepth);
      pack(first, begin, end, right);
      for (long tile = 0; tile < tiles; tile++) {
        long row = tile * k.tile_rows;
        k.tile_product(left + tile * panel + begin * k.tile_rows, right, end - begin, begin > 0,
                       y.values + row * y.stride + first, y.stride, std::min<long>(k.tile_rows, count - row),
                       std::min<long>(k.tile_columns, matrix_rows - first));
      }
    }
  };
  parallel(int((matrix_rows + k.tile_columns - 1) / k.tile_columns), column);
}

// Rows of x as panels take them: in tiles of nearly the same size, each split into planes for itself.
class Planes {
 public:
  Planes(const QuantizedMatrix& matrix, const float* x, long count, Scratch& scratch)
      : count_(count), tiles_((count + kPanelTile - 1) / kPanelTile) {
    const Kernels& k = kernels();
    row_bytes_ = k.panel_bytes(matrix.columns, matrix.group);
    char* planes = reinterpret_cast<char*>(scratch.floats(size_t(count * row_bytes_) / sizeof(float)));
    auto split = [&](int tile) {
      long row = first(tile);
      k.split_planes(x + row * matrix.columns, first(tile + 1) - row, matrix.columns, matrix.group, matrix.bits,
                     planes + row * row_bytes_);
    };
    // A few rows are split in the time that another thread takes to wake up.
    if (tiles_ > 2) parallel(int(tiles_), split);
    else for (int tile = 0; tile < tiles_; tile++) split(tile);
    planes_ = planes;
  }

  // y [count] of the matrix's rows [begin, end), whole panels: each panel for as many tiles as the cache holds.
  void multiply(const QuantizedMatrix& matrix, long begin, long end, float* y, long y_stride) const {
    long together = std::max<long>(1, kPlanesBytes / (kPanelTile * row_bytes_));
    for (long from = 0; from < tiles_; from += together)
      for (long row = begin; row < end; row += kPanelRows)
        for (long tile = from; tile < std::min(tiles_, from + together); tile++)
          kernels().panel_product(matrix, row, row + kPanelRows, planes_ + first(tile) * row_bytes_,
                                  first(tile + 1) - first(tile), y + first(tile) * y_stride, y_stride);
  }

 private:
  long first(long tile) const { return count_ * tile / tiles_; }

  long count_, tiles_, row_bytes_;
  const char* planes_;
};

}  // namespace

void multiply(const QuantizedMatrix& matrix, const Rows& x, const Output& y) {
  static thread_local Scratch wide_scratch, arranged_scratch, result_scratch;
  const Kernels& k = kernels();
  const float* wide = as_floats(x, wide_scratch);
  Target target(y, x.count, matrix.rows, result_scratch);
  if (matrix.in_panels) {
    Planes planes(matrix, wide, x.count, arranged_scratch);
    Split split(matrix.rows, kPanelRows, matrix.rows * matrix.columns);
    auto part = [&](int chunk) {
      long first = chunk * split.step;
      planes.multiply(matrix, first, std::min(matrix.rows, first + split.step), target.values, target.stride);
    };
    parallel(split.chunks, part);
  } else if (x.count <= kFewRows) {
    long size = k.arranged_size(matrix.columns, matrix.bits);
    float* arranged = arranged_scratch.floats(size_t(size * x.count));
    for (long m = 0; m < x.count; m++) k.arrange(wide + m * x.columns, x.columns, matrix.bits, arranged + m * size);
    Split split(matrix.rows, 16, matrix.rows * matrix.columns);
    auto part = [&](int chunk) {
      long first = chunk * split.step;
      k.quantized_rows(matrix, first, std::min(matrix.rows, first + split.step), arranged, x.count, target.values,
                       target.stride);
    };
    parallel(split.chunks, part);
  } else {
    tiled(matrix.rows, matrix.columns, wide, x.count, target,
          [&](long first, long begin, long end, float* packed) { k.pack_quantized(matrix, first, begin, end, packed); });
  }
  target.finish(y, x.count, matrix.rows);
}

void multiply(const DenseMatrix& matrix, const Rows& x, const Output& y) {
  static thread_local Scratch wide_scratch, result_scratch;
  const Kernels& k = kernels();
  const float* wide = as_floats(x, wide_scratch);
  Target target(y, x.count, matrix.rows, result_scratch);
  if (x.count <= kFewRows) {
    Split split(matrix.rows, 16, matrix.rows * matrix.columns);
    auto part = [&](int chunk) {
      long first = chunk * split.step;
      k.dense_rows(matrix, first, std::min(matrix.rows, first + split.step), wide, x.columns, x.count, target.values,
                   target.stride);
    };
    parallel(split.chunks, part);
  } else {
    tiled(matrix.rows, matrix.columns, wide, x.count, target,
          [&](long first, long begin, long end, float* packed) { k.pack_dense(matrix, first, begin, end, packed); });
  }
  target.finish(y, x.count, matrix.rows);
}

namespace {

// Whether layers may share what x is made into.
bool alike(const Projection& a, const Projection& b) {
  if (a.is_quantized != b.is_quantized) return false;
  return !a.is_quantized || (a.quantized.bits == b.quantized.bits && a.quantized.in_panels == b.quantized.in_panels &&
                             (!a.quantized.in_panels || a.quantized.group == b.quantized.group));
}

// The rows of all layers, one layer behind the other, shared out in chunks of a multiple of `multiple` rows:
// part(layer, first, last) is called for what of a layer is in a chunk.
template <class Part>
void share_out(const Projection* layers, int count, long multiple, long columns, const Part& part) {
  long rows = 0;
  for (int i = 0; i < count; i++) rows += layers[i].rows();
  Split split(rows, multiple, rows * columns);
  auto chunk = [&](int number) {
    long first = number * split.step, last = std::min(rows, first + split.step);
    for (int i = 0; i < count && first < last; i++) {
      long own = layers[i].rows(), end = std::min(last, own);
      if (first < end) part(i, first, end);
      first = std::max<long>(0, first - own);
      last -= own;
    }
  };
  parallel(split.chunks, chunk);
}

}  // namespace

void project(const Projection* layers, int count, const float* x, long x_count, long columns, float* const* ys) {
  static thread_local Scratch arranged_scratch;
  const Kernels& k = kernels();
  bool are_alike = true;
  for (int i = 1; i < count; i++) are_alike = are_alike && alike(layers[0], layers[i]);
  const Projection& one = layers[0];
  if (are_alike && one.is_quantized && one.quantized.in_panels) {
    Planes planes(one.quantized, x, x_count, arranged_scratch);
    share_out(layers, count, kPanelRows, columns, [&](int i, long first, long last) {
      planes.multiply(layers[i].quantized, first, last, ys[i], layers[i].rows());
    });
  } else if (are_alike && x_count <= kFewRows) {
    const float* arranged = x;
    if (one.is_quantized) {
      int bits = one.quantized.bits;
      long size = k.arranged_size(columns, bits);
      float* target = arranged_scratch.floats(size_t(size * x_count));
      for (long m = 0; m < x_count; m++) k.arrange(x + m * columns, columns, bits, target + m * size);
      arranged = target;
    }
    share_out(layers, count, 16, columns, [&](int i, long first, long last) {
      long own = layers[i].rows();
      if (one.is_quantized) k.quantized_rows(layers[i].quantized, first, last, arranged, x_count, ys[i], own);
      else k.dense_rows(layers[i].dense, first, last, x, columns, x_count, ys[i], own);
    });
  } else {
    Rows input{x, Type::f32, x_count, columns};
    for (int i = 0; i < count; i++) {
      Output output{ys[i], Type::f32, layers[i].rows()};
      if (layers[i].is_quantized) multiply(layers[i].quantized, input, output);
      else multiply(layers[i].dense, input, output);
    }
  }
  for (int i = 0; i < count; i++) {
    if (layers[i].bias == nullptr) continue;
    for (long m = 0; m < x_count; m++)
      for (long n = 0; n < layers[i].rows(); n++) ys[i][m * layers[i].rows() + n] += layers[i].bias[n];
  }
}

}  // namespace mlx_serving::cpu
