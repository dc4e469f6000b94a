// Slabs of keys and values as primitives take them: one array each, or the three of quantised ones.
#pragma once

#include <vector>

#include "arrays.hpp"

namespace mlx_serving {

// Keys or values [slots, kv heads, capacity, size]: themselves, or digits, scales and biases.
using Side = std::vector<mx::array>;

// How they are kept: as they are, or quantised along the head size.
struct SlabForm {
  int group_size = 0;
  int bits = 0;

  size_t arrays() const { return bits == 0 ? 1 : 3; }
  bool operator==(const SlabForm&) const = default;
};

// Throws std::invalid_argument unless these are keys and values, three arrays each, of heads of this size in this form.
void check_quantized(const Side& keys, const Side& values, long size, SlabForm form);

// The side whose arrays are `inputs` from `at` on, for kernels that read it. Arrays that lie otherwise than kernels take
// them are copied.
cpu::Slab slab_to_read(const std::vector<mx::array>& inputs, size_t at, SlabForm form, mx::cpu::CommandEncoder& encoder);
// For kernels that write to it. Arrays that lie otherwise get memory of their own, see `own_places`.
cpu::Slab slab_to_write(const std::vector<mx::array>& inputs, size_t at, SlabForm form,
                        mx::cpu::CommandEncoder& encoder);

}  // namespace mlx_serving
