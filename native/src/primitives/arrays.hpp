// What primitives need of MLX's arrays.
#pragma once

#include <mlx/backend/cpu/encoder.h>
#include <mlx/mlx.h>
#include <mlx/primitives.h>

#include <stdexcept>
#include <string>

#include "../cpu/types.hpp"

namespace mlx_serving {

namespace mx = mlx::core;

// The kernels' name of a floating type. Throws std::invalid_argument for any other, naming `what`.
cpu::Type type_of(const mx::array& a, const char* what);
bool is_floating(const mx::array& a);

// Throws std::invalid_argument unless `holds`.
inline void require(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument(message);
}
std::string shape_text(const mx::array& a);

// Allocates an output.
void allocate(mx::array& out);
// The array itself if its rows follow each other without gaps, else a copy that will be made on the encoder's thread.
mx::array contiguous_input(const mx::array& a, mx::cpu::CommandEncoder& encoder);

// The stream of an operation: the thread's own for the CPU, whatever the default device is.
mx::Stream cpu_stream();

}  // namespace mlx_serving
