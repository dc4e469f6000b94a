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

}  // namespace mlx_serving::cpu
