// The kernels as operations of MLX's graph: lazy, on the CPU stream, in its order.
//
// Each function checks its arguments when the graph is built and throws std::invalid_argument, which Python sees as
// ValueError. Arrays may have any strides; those a kernel does not take are copied first.
#pragma once

#include <mlx/mlx.h>

namespace mlx_serving {

namespace mx = mlx::core;

// x [..., k] times the transpose of an affinely quantised matrix [n, k]; gives [..., n] in x's type.
mx::array quantized_matmul(const mx::array& x, const mx::array& weight, const mx::array& scales,
                           const mx::array& biases, int group_size, int bits);

// x [..., k] times the transpose of a dense matrix [n, k] of its own type, accumulated in float32; in x's type.
mx::array matmul(const mx::array& x, const mx::array& weight);

}  // namespace mlx_serving
