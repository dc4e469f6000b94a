// A decoder layer of the Llama family as two operations around its attention: everything from the layer's input to
// rotated queries and keys, and everything from attention's output to the layer's. In float32, with weights of any kind.
#pragma once

#include <mlx/mlx.h>

#include <memory>
#include <optional>
#include <vector>

#include "slabs.hpp"

namespace mlx_serving {

// The parameters of a linear layer: [weight], or [weight, scales, biases] with `bits` and `group_size`; `bias` is added.
struct LinearParameters {
  std::vector<mx::array> weight;
  std::optional<mx::array> bias;
  int group_size = 0;
  int bits = 0;
};

struct BlockParameters {
  std::vector<LinearParameters> layers;  // q, k, v, o, gate, up, down
  std::vector<mx::array> norms;          // before attention, before the gate
  std::vector<float> eps;
  int heads = 0, kv_heads = 0, rope_dims = 0;
  bool traditional = false;
  float rope_scale = 1.0f;
  std::optional<float> base;
  std::optional<mx::array> freqs;
};

class BlockWeights;

class Block {
 public:
  // Keeps the arrays as they are now. Throws std::invalid_argument for what does not fit together.
  explicit Block(BlockParameters parameters);
  // Queries, keys and values [rows, heads, tokens, size] of x [rows, tokens, columns] float32; `offset` as for rope.
  std::vector<mx::array> enter(const mx::array& x, const mx::array& offset) const;
  // The layer's output of its input x and of attention's output [rows, heads, tokens, size].
  mx::array leave(const mx::array& x, const mx::array& attended) const;

 private:
  friend class Stack;
  std::shared_ptr<const BlockWeights> weights_;
};

// The slabs of rows that belong together: `lengths` [rows] int32 before the new tokens; keys and values a layer each,
// [slots, kv heads, capacity, size] float32, row i in slot i, or all quantised, to 4 or 8 bits.
struct StackSlabs {
  mx::array lengths;
  std::vector<Side> keys, values;
};

// Decoder layers of one shape, one after the other in one operation. Their attention writes the new keys and values
// into the slabs' own memory, as attend_in_place does: nobody else may read those columns before.
class Stack {
 public:
  // Throws std::invalid_argument for layers of different shapes. `scale`: of attention.
  Stack(const std::vector<Block>& blocks, float scale);
  // The last layer's output of x [rows of all groups, tokens, columns] float32.
  mx::array run(const mx::array& x, const std::vector<StackSlabs>& groups) const;

 private:
  std::vector<std::shared_ptr<const BlockWeights>> blocks_;
  float scale_;
};

}  // namespace mlx_serving
