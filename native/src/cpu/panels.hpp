// Quantised matrices in panels of kPanelRows rows, as products of bytes read them. No MLX, no Python.
#pragma once

#include "kernels.hpp"

namespace mlx_serving::cpu {

// Whether digits of so many bits can be in panels.
constexpr bool panels_take(int bits) {
  return bits == 4 || bits == 5 || bits == 6 || bits == 8;
}

// Rows [rows][columns] side by side, element by element: [rows / kPanelRows][columns][kPanelRows].
void to_panels(const uint32_t* from, long rows, long columns, uint32_t* to);
void to_panels(const uint16_t* from, long rows, long columns, uint16_t* to);

// The same for words of digits of `bits` bits, `columns` words a row. Of 5 and 6 bits the lower four of eight digits become a word
// as digits of 4 bits have it, and behind each four or two of these words stands one with the others: bits
// [8 i + j w, 8 i + j w + w) of it, w = bits - 4, are those of the digit whose lower four leave their words in byte i of the j-th
// of vectors, which are the even digits of the first word, its odd ones, those of the second, and so on.
void digits_to_panels(const uint32_t* from, long rows, long columns, int bits, uint32_t* to);

}  // namespace mlx_serving::cpu
