// What primitives need of MLX's arrays.
#pragma once

#include <mlx/backend/cpu/encoder.h>
#include <mlx/mlx.h>
#include <mlx/primitives.h>

#include <stdexcept>
#include <string>

#include "../cpu/attention.hpp"

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

// The array itself if its last axis has no gaps, else a copy.
mx::array dense_last_axis(const mx::array& a, mx::cpu::CommandEncoder& encoder);
// Makes `a` something that kernels may write to: an array whose last axis has gaps or whose elements share places, as a view
// or a broadcast may be, gets memory of its own, row after row. What it was a view of stays as it is. Without `takes_gaps`
// an array with gaps between its rows gets it too.
void own_places(mx::array a, bool takes_gaps, mx::cpu::CommandEncoder& encoder);
// Of an array [rows][heads][columns][size] whose last axis has no gaps.
cpu::Heads heads_of(const mx::array& a);

// Allocates [rows, heads, tokens, size] as [rows, tokens, heads, size]: what the output projection takes.
void allocate_by_token(mx::array& out);
// An array [rows, heads, tokens, size] that is so in memory: itself, or a copy.
mx::array by_token(const mx::array& a, mx::cpu::CommandEncoder& encoder);

// A primitive of ours: on the CPU only.
class CpuPrimitive : public mx::Primitive {
 public:
  using Primitive::Primitive;
  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error("this kernel runs on the CPU only");
  }
  // Of most: that of the first input.
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override { return {inputs[0].shape()}; }
};

// The stream of an operation: the thread's own for the CPU, whatever the default device is.
mx::Stream cpu_stream();

}  // namespace mlx_serving
