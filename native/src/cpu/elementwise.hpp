// Operations on rows, over all threads. No MLX, no Python.
#pragma once

#include <vector>

#include "attention.hpp"
#include "products.hpp"

namespace mlx_serving::cpu {

// y = x / sqrt(mean(x^2) + eps) * weight for each row; a null weight stands for ones. Rows of y are contiguous.
void rms_norm(const Rows& x, const void* weight, Type weight_type, float eps, void* y, Type y_type);
// y = (x - mean) / sqrt(variance + eps) * weight + bias, of one type `type`; null for ones and zeros.
void layer_norm(const Rows& x, const void* weight, const void* bias, Type type, float eps, void* y, Type y_type);
// y = activation(gate) * x for `count` elements of one type.
void gate(Activation activation, const void* gates, const void* x, void* y, Type type, long count);

struct Rotation {
  long rows, heads, tokens, size;
  bool traditional;
  float scale;                     // of positions
  std::vector<float> frequencies;  // [half]: radians a position; twice as many elements of each head are rotated
};
// y [rows][heads][tokens][size] = x rotated by positions offsets[row] + token; y has the strides given.
void rotate(const Rotation& rotation, const Heads& x, const int* offsets, const Heads& y);

}  // namespace mlx_serving::cpu
