// Products over all threads: chooses the form by the number of rows. No MLX, no Python.
#pragma once

#include "kernels.hpp"

namespace mlx_serving::cpu {

// A contiguous array of rows.
struct Rows {
  const void* values;
  Type type;
  long count;
  long columns;
};

struct Output {
  void* values;
  Type type;
  long stride;  // elements between rows
};

// y = x matrix^T, accumulated in float.
void multiply(const QuantizedMatrix& matrix, const Rows& x, const Output& y);
void multiply(const DenseMatrix& matrix, const Rows& x, const Output& y);

// A linear layer; `bias` [rows] is in float or null.
struct Projection {
  bool is_quantized;
  QuantizedMatrix quantized;
  DenseMatrix dense;
  const float* bias;

  long rows() const { return is_quantized ? quantized.rows : dense.rows; }
};

// What several layers make of the same x [count][columns], all in float; ys[i] has the stride of its own rows. Few rows
// are arranged once and all layers' rows shared out at once.
void project(const Projection* layers, int count, const float* x, long x_count, long columns, float* const* ys);

}  // namespace mlx_serving::cpu
