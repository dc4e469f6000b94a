// Drawing the next token of every row, over all threads. No MLX, no Python.
#pragma once

#include "products.hpp"

namespace mlx_serving::cpu {

// Of one row, as the engine's sampling.py defines them.
struct DrawParameters {
  float inverse_temperature;  // 0 for greedy
  float top_p;
  float min_p;
  float uniform;  // in [0, 1)
  int top_k;      // 0 for none
};

// Tokens [rows] from logits [rows][vocabulary]: -1 where these are not finite, 0 where a mask leaves none. `masks`
// [rows][ceil(vocabulary / 32)], or null, has a bit for each token that may be drawn. A row is drawn by one thread with
// sums in a fixed order, so the same comes out whatever is beside it.
void draw(const Rows& logits, const uint32_t* masks, const DrawParameters* parameters, int32_t* tokens);

// y [rows][vocabulary] = logits of each row adjusted by the one at its place among `count`, or as they are where
// `places` names none.
void adjust(const Rows& logits, const int32_t* places, const Adjustment* adjustments, long count, float* y);

}  // namespace mlx_serving::cpu
