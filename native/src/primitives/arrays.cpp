#include "arrays.hpp"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

namespace mlx_serving {

bool is_floating(const mx::array& a) {
  return a.dtype() == mx::float32 || a.dtype() == mx::float16 || a.dtype() == mx::bfloat16;
}

cpu::Type type_of(const mx::array& a, const char* what) {
  require(is_floating(a), std::string(what) + " must be float32, float16 or bfloat16");
  if (a.dtype() == mx::float32) return cpu::Type::f32;
  return a.dtype() == mx::float16 ? cpu::Type::f16 : cpu::Type::bf16;
}

std::string shape_text(const mx::array& a) {
  std::string text = "(";
  for (size_t i = 0; i < a.ndim(); i++) text += (i ? ", " : "") + std::to_string(a.shape(int(i)));
  return text + ")";
}

void allocate(mx::array& out) {
  out.set_data(mx::allocator::malloc(out.nbytes()));
}

namespace {

// Copies what `source` points to, of these strides in elements, row by row into `target`.
void copy_strided(const char* source, char* target, const mx::Shape& shape, const mx::Strides& strides, size_t item) {
  size_t dims = shape.size();
  size_t count = 1;
  for (auto extent : shape) count *= size_t(extent);
  std::vector<long> index(dims, 0);
  for (size_t i = 0; i < count; i++) {
    std::memcpy(target + i * item, source, item);
    for (size_t d = dims; d-- > 0;) {
      source += strides[d] * int64_t(item);
      if (++index[d] < shape[d]) break;
      source -= strides[d] * int64_t(item) * shape[d];
      index[d] = 0;
    }
  }
}

mx::array copy_of(const mx::array& a, mx::cpu::CommandEncoder& encoder) {
  mx::array copy(a.shape(), a.dtype(), nullptr, {});
  allocate(copy);
  encoder.dispatch([source = a.data<char>(), target = copy.data<char>(), shape = a.shape(), strides = a.strides(),
                    item = a.itemsize()] { copy_strided(source, target, shape, strides, item); });
  encoder.add_temporary(copy);
  return copy;
}

// Whether no two elements are in one place: from the shortest step on, each axis steps over all that is within it.
bool has_own_places(const mx::array& a) {
  std::vector<std::pair<int64_t, int64_t>> axes;
  for (int axis = 0; axis < int(a.ndim()); axis++)
    if (a.shape(axis) > 1) axes.emplace_back(std::abs(a.strides(axis)), a.shape(axis));
  std::sort(axes.begin(), axes.end());
  int64_t reach = 0;
  for (auto [step, extent] : axes) {
    if (step <= reach) return false;
    reach += step * (extent - 1);
  }
  return true;
}

}  // namespace

mx::array contiguous_input(const mx::array& a, mx::cpu::CommandEncoder& encoder) {
  return a.flags().row_contiguous ? a : copy_of(a, encoder);
}

mx::array dense_last_axis(const mx::array& a, mx::cpu::CommandEncoder& encoder) {
  return a.strides(-1) == 1 || a.shape(-1) == 1 ? a : copy_of(a, encoder);
}

void own_places(mx::array a, bool takes_gaps, mx::cpu::CommandEncoder& encoder) {
  bool is_dense = a.strides(-1) == 1 || a.shape(-1) == 1;
  if (a.flags().row_contiguous || (takes_gaps && is_dense && has_own_places(a))) return;
  mx::array source(a.shape(), a.dtype(), nullptr, {});
  source.copy_shared_buffer(a);
  encoder.add_temporary(source);
  a.copy_shared_buffer(copy_of(source, encoder));
}

void allocate_by_token(mx::array& out) {
  int64_t heads = out.shape(1), tokens = out.shape(2), size = out.shape(3);
  bool same = heads == 1 || tokens == 1;
  mx::array::Flags flags{true, same, false};
  mx::Strides strides = same ? mx::Strides{heads * tokens * size, tokens * size, size, 1}
                             : mx::Strides{heads * tokens * size, size, heads * size, 1};
  out.set_data(mx::allocator::malloc(out.nbytes()), out.size(), strides, flags);
}

mx::array by_token(const mx::array& a, mx::cpu::CommandEncoder& encoder) {
  int64_t heads = a.shape(1), tokens = a.shape(2), size = a.shape(3);
  bool single = a.shape(0) == 1;
  if (a.flags().row_contiguous && (heads == 1 || tokens == 1)) return a;
  if (a.strides(3) == 1 && a.strides(1) == size && a.strides(2) == heads * size &&
      (single || a.strides(0) == heads * tokens * size))
    return a;
  mx::array copy({a.shape(0), a.shape(2), a.shape(1), a.shape(3)}, a.dtype(), nullptr, {});
  allocate(copy);
  mx::Strides strides{a.strides(0), a.strides(2), a.strides(1), a.strides(3)};
  encoder.dispatch([source = a.data<char>(), target = copy.data<char>(), shape = copy.shape(), strides,
                    item = a.itemsize()] { copy_strided(source, target, shape, strides, item); });
  encoder.add_temporary(copy);
  return copy;
}

cpu::Heads heads_of(const mx::array& a) {
  return {a.data<void>(), type_of(a, "the array"), a.strides(0), a.strides(1), a.strides(2)};
}

mx::Stream cpu_stream() {
  return mx::to_stream({}, mx::Device::cpu);
}

}  // namespace mlx_serving
