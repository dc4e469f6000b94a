#include "panels.hpp"

#include "pool.hpp"

namespace mlx_serving::cpu {
namespace {

// Element k of row r of a panel goes to the r-th place of its k-th group.
template <class T>
void interleave(const T* from, long rows, long columns, T* to) {
  auto panel = [&](int number) {
    long first = number * kPanelRows * columns;
    for (long k = 0; k < columns; k++)
      for (long row = 0; row < kPanelRows; row++) to[first + k * kPanelRows + row] = from[first + row * columns + k];
  };
  parallel(int(rows / kPanelRows), panel);
}

// 32 digits of 5 or 6 bits, `bits` words of MLX's, as panels have them.
void split(const uint32_t* words, int bits, uint32_t* to) {
  int width = bits - 4, lower = 4 / width;
  for (int i = 0; i < bits; i++) to[i] = 0;
  for (int k = 0; k < 32; k++) {
    int bit = k * bits;
    uint64_t pair = words[bit / 32];
    if (bit % 32 + bits > 32) pair |= uint64_t(words[bit / 32 + 1]) << 32;
    uint32_t digit = uint32_t(pair >> (bit % 32)) & ((1u << bits) - 1);
    int word = k / 8, step = word / lower, in_word = k % 8;
    int vector = word % lower * 2 + in_word % 2;
    to[step * (lower + 1) + word % lower] |= (digit & 15u) << (4 * in_word);
    to[step * (lower + 1) + lower] |= (digit >> 4) << (in_word / 2 * 8 + vector * width);
  }
}

}  // namespace

void to_panels(const uint32_t* from, long rows, long columns, uint32_t* to) {
  interleave(from, rows, columns, to);
}

void to_panels(const uint16_t* from, long rows, long columns, uint16_t* to) {
  interleave(from, rows, columns, to);
}

void digits_to_panels(const uint32_t* from, long rows, long columns, int bits, uint32_t* to) {
  if (bits == 4 || bits == 8) return interleave(from, rows, columns, to);
  auto panel = [&](int number) {
    long first = number * kPanelRows * columns;
    for (long row = 0; row < kPanelRows; row++)
      for (long k = 0; k < columns; k += bits) {
        uint32_t words[8];
        split(from + first + row * columns + k, bits, words);
        for (int i = 0; i < bits; i++) to[first + (k + i) * kPanelRows + row] = words[i];
      }
  };
  parallel(int(rows / kPanelRows), panel);
}

}  // namespace mlx_serving::cpu
