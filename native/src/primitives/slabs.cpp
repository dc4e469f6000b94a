#include "slabs.hpp"

#include <algorithm>

namespace mlx_serving {
namespace {

// Columns from one entry of an axis to the next; -1 where that is no number of them.
long columns_between(const mx::array& part, int axis) {
  long width = part.shape(3), step = long(part.strides(axis));
  if (part.shape(axis) == 1) return 0;
  return step >= 0 && step % width == 0 ? step / width : -1;
}

bool has_dense_columns(const mx::array& part) {
  return (part.shape(3) == 1 || part.strides(3) == 1) && (part.shape(2) == 1 || part.strides(2) == part.shape(3));
}

// Whether in these arrays a column follows the one before it without a gap, and heads and rows are as many columns apart
// in each.
bool lie_alike(const mx::array* parts, size_t count) {
  return std::all_of(parts, parts + count, [&](const mx::array& part) {
    bool is_alike = has_dense_columns(part);
    for (int axis : {0, 1}) {
      long columns = columns_between(part, axis);
      is_alike &= columns >= 0 && columns == columns_between(parts[0], axis);
    }
    return is_alike;
  });
}

cpu::Slab quantized_slab(const mx::array* parts, SlabForm form) {
  cpu::Heads heads{parts[0].data<void>(), type_of(parts[1], "scales"), columns_between(parts[0], 0),
                   columns_between(parts[0], 1), 1};
  return {heads, parts[1].data<void>(), parts[2].data<void>(), form.bits, form.group_size};
}

}  // namespace

void check_quantized(const Side& keys, const Side& values, long size, SlabForm form) {
  require(keys.size() == 3 && values.size() == 3, "keys and values must each be values, scales and biases");
  require(form.bits == 4 || form.bits == 8, "bits must be 4 or 8");
  require(form.group_size == 32 || form.group_size == 64 || form.group_size == 128,
          "group_size must be 32, 64 or 128");
  for (const Side& side : {keys, values}) {
    require(side[0].dtype() == mx::uint32 && side[0].ndim() == 4 && side[0].shape() == keys[0].shape() &&
                side[0].shape(3) * 32L == size * form.bits,
            "quantised keys and values do not fit heads of " + std::to_string(size));
    auto shape = side[0].shape();
    shape.back() = int(size / form.group_size);
    type_of(side[1], "scales");
    require(size % form.group_size == 0 && side[1].shape() == shape && side[2].shape() == shape &&
                side[1].dtype() == side[2].dtype() && side[1].dtype() == keys[1].dtype(),
            "scales and biases do not fit the quantised values");
  }
}

cpu::Slab slab_to_read(const std::vector<mx::array>& inputs, size_t at, SlabForm form,
                       mx::cpu::CommandEncoder& encoder) {
  if (form.bits == 0) return {heads_of(dense_last_axis(inputs[at], encoder))};
  if (lie_alike(&inputs[at], 3)) return quantized_slab(&inputs[at], form);
  Side parts;
  for (size_t part = 0; part < 3; part++) parts.push_back(contiguous_input(inputs[at + part], encoder));
  return quantized_slab(parts.data(), form);
}

cpu::Slab slab_to_write(const std::vector<mx::array>& inputs, size_t at, SlabForm form,
                        mx::cpu::CommandEncoder& encoder) {
  bool is_alike = form.bits == 0 || lie_alike(&inputs[at], 3);
  for (size_t part = 0; part < form.arrays(); part++) own_places(inputs[at + part], is_alike, encoder);
  return form.bits == 0 ? cpu::Slab{heads_of(inputs[at])} : quantized_slab(&inputs[at], form);
}

}  // namespace mlx_serving
