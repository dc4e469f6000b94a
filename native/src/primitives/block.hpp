// A decoder layer of the Llama family as two operations around its attention: everything from the layer's input to
// rotated queries and keys, and everything from attention's output to the layer's. In float32, with weights of any kind.
#pragma once

#include <mlx/mlx.h>

#include <memory>
#include <optional>
#include <vector>

namespace mlx_serving {

namespace mx = mlx::core;

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
  std::shared_ptr<const BlockWeights> weights_;
};

}  // namespace mlx_serving
