// Element types of arrays that kernels read and write, and their scalar conversions. No MLX, no Python.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace mlx_serving::cpu {

enum class Type { f32, f16, bf16 };

struct half_t {
  uint16_t bits;
};
struct bfloat_t {
  uint16_t bits;
};

constexpr size_t size_of(Type type) {
  return type == Type::f32 ? 4 : 2;
}

inline float to_float(float value) {
  return value;
}

inline float to_float(bfloat_t value) {
  return std::bit_cast<float>(uint32_t(value.bits) << 16);
}

// IEEE half to single: shift into place and rescale the exponent by multiplication, which also handles subnormals.
inline float to_float(half_t value) {
  uint32_t sign = uint32_t(value.bits & 0x8000u) << 16;
  uint32_t magnitude = uint32_t(value.bits & 0x7fffu) << 13;
  float scaled = std::bit_cast<float>(magnitude) * 0x1p112f;
  uint32_t bits = std::bit_cast<uint32_t>(scaled);
  if ((value.bits & 0x7c00u) == 0x7c00u) bits = magnitude | 0x7f800000u;
  return std::bit_cast<float>(bits | sign);
}

inline bfloat_t to_bfloat(float value) {
  uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {uint16_t((bits >> 16) | 0x40u)};
  return {uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

// Single to half, to the nearest even.
inline half_t to_half(float value) {
  uint32_t bits = std::bit_cast<uint32_t>(value);
  uint16_t sign = uint16_t((bits >> 16) & 0x8000u);
  uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {uint16_t(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};
  if (magnitude < 0x38800000u) {  // subnormal: adding a number of the right exponent does the rounding
    float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return {uint16_t(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u))};
  }
  uint32_t odd = (magnitude >> 13) & 1u;
  return {uint16_t(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13))};
}

template <class T>
inline T from_float(float value);
template <>
inline float from_float<float>(float value) {
  return value;
}
template <>
inline half_t from_float<half_t>(float value) {
  return to_half(value);
}
template <>
inline bfloat_t from_float<bfloat_t>(float value) {
  return to_bfloat(value);
}

}  // namespace mlx_serving::cpu
