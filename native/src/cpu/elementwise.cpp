#include "elementwise.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "pool.hpp"
#include "scratch.hpp"

namespace mlx_serving::cpu {
namespace {

// Elements one chunk should have for another thread to be worth waking.
constexpr long kChunkElements = 16384;

const void* offset(const void* values, Type type, long elements) {
  return static_cast<const char*>(values) + elements * long(size_of(type));
}
void* offset(void* values, Type type, long elements) {
  return static_cast<char*>(values) + elements * long(size_of(type));
}

// `count` values in float: themselves, or a copy.
const float* floats(const void* values, Type type, long count, Scratch& scratch) {
  if (values == nullptr || type == Type::f32) return static_cast<const float*>(values);
  float* wide = scratch.floats(size_t(count));
  kernels().widen(values, type, wide, count);
  return wide;
}

// Calls `kernel(x, y)` with each row in float.
template <class Kernel>
void each_row(const Rows& x, void* y, Type y_type, const Kernel& kernel) {
  long step = std::max<long>(1, kChunkElements / x.columns);
  auto part = [&](int chunk) {
    static thread_local Scratch in_scratch, out_scratch;
    for (long row = chunk * step; row < std::min(x.count, (chunk + 1) * step); row++) {
      const float* in = floats(offset(x.values, x.type, row * x.columns), x.type, x.columns, in_scratch);
      void* target = offset(y, y_type, row * x.columns);
      float* out = y_type == Type::f32 ? static_cast<float*>(target) : out_scratch.floats(size_t(x.columns));
      kernel(in, out);
      if (y_type != Type::f32) kernels().narrow(out, target, y_type, x.columns);
    }
  };
  parallel(int((x.count + step - 1) / step), part);
}

// Cosines and sines of all positions of a call. Queries and keys of every layer ask for the same ones, so the last
// answer is kept.
struct Angles {
  std::vector<float> frequencies, cosines, sines;
  std::vector<int> offsets;
  long tokens = -1;
  float scale = 0.0f;

  void prepare(const Rotation& rotation, const int* wanted) {
    std::vector<int> now(wanted, wanted + rotation.rows);
    if (tokens == rotation.tokens && scale == rotation.scale && offsets == now && frequencies == rotation.frequencies)
      return;
    frequencies = rotation.frequencies;
    offsets = now;
    tokens = rotation.tokens;
    scale = rotation.scale;
    size_t half = frequencies.size();
    cosines.resize(size_t(rotation.rows * tokens) * half);
    sines.resize(cosines.size());
    for (long line = 0; line < rotation.rows * tokens; line++) {
      float position = float(offsets[size_t(line / tokens)] + line % tokens) * scale;
      for (size_t i = 0; i < half; i++) {
        float angle = position * frequencies[i];
        cosines[size_t(line) * half + i] = std::cos(angle);
        sines[size_t(line) * half + i] = std::sin(angle);
      }
    }
  }
};

}  // namespace

void rms_norm(const Rows& x, const void* weight, Type weight_type, float eps, void* y, Type y_type) {
  static thread_local Scratch scratch;
  const float* wide = floats(weight, weight_type, x.columns, scratch);
  each_row(x, y, y_type, [&](const float* in, float* out) { kernels().rms_norm(in, wide, eps, out, x.columns); });
}

void layer_norm(const Rows& x, const void* weight, const void* bias, Type type, float eps, void* y, Type y_type) {
  static thread_local Scratch weight_scratch, bias_scratch;
  const float* wide = floats(weight, type, x.columns, weight_scratch);
  const float* wide_bias = floats(bias, type, x.columns, bias_scratch);
  each_row(x, y, y_type,
           [&](const float* in, float* out) { kernels().layer_norm(in, wide, wide_bias, eps, out, x.columns); });
}

void gate(Activation activation, const void* gates, const void* x, void* y, Type type, long count) {
  auto part = [&](int chunk) {
    static thread_local Scratch gate_scratch, x_scratch, out_scratch;
    long first = chunk * kChunkElements, some = std::min(kChunkElements, count - first);
    const float* wide_gates = floats(offset(gates, type, first), type, some, gate_scratch);
    const float* wide_x = floats(offset(x, type, first), type, some, x_scratch);
    void* target = offset(y, type, first);
    float* out = type == Type::f32 ? static_cast<float*>(target) : out_scratch.floats(size_t(some));
    kernels().gate(activation, wide_gates, wide_x, out, some);
    if (type != Type::f32) kernels().narrow(out, target, type, some);
  };
  parallel(int((count + kChunkElements - 1) / kChunkElements), part);
}

void rotate(const Rotation& r, const Heads& x, const int* offsets, const Heads& y) {
  static thread_local Angles angles;
  angles.prepare(r, offsets);
  long half = long(r.frequencies.size());
  auto place = [](const Heads& heads, long row, long head, long token) {
    return (row * heads.row_stride + head * heads.head_stride + token * heads.column_stride);
  };
  const Angles& prepared = angles;
  long lines = r.rows * r.tokens, step = std::max<long>(1, kChunkElements / (r.heads * r.size));
  auto part = [&](int chunk) {
    static thread_local Scratch in_scratch, out_scratch;
    for (long line = chunk * step; line < std::min(lines, (chunk + 1) * step); line++) {
      const float* cosines = prepared.cosines.data() + line * half;
      const float* sines = prepared.sines.data() + line * half;
      long row = line / r.tokens, token = line % r.tokens;
      for (long head = 0; head < r.heads; head++) {
        const float* in = floats(offset(x.values, x.type, place(x, row, head, token)), x.type, r.size, in_scratch);
        void* target = offset(const_cast<void*>(y.values), y.type, place(y, row, head, token));
        float* out = y.type == Type::f32 ? static_cast<float*>(target) : out_scratch.floats(size_t(r.size));
        kernels().rotate(in, cosines, sines, half, r.traditional, out);
        if (out != in) std::memcpy(out + 2 * half, in + 2 * half, size_t(r.size - 2 * half) * sizeof(float));
        if (y.type != Type::f32) kernels().narrow(out, target, y.type, r.size);
      }
    }
  };
  parallel(int((lines + step - 1) / step), part);
}

}  // namespace mlx_serving::cpu
