// Attention with a running softmax (Milakov and Gimelshein, 2018): blocks of columns, each seen once.
//
// What is not finite stays so: a score that is NaN or +inf makes the row's total NaN, and a row of nothing but -inf has a
// total of 0, by which its sums are divided.

// scores[c] = query . keys[c], for `count` <= W columns.
inline void few_scores(const float* query, const float* keys, long stride, long count, long size, float* scores) {
  V sums[W];
  for (int c = 0; c < W; c++) sums[c] = zero();
  for (long d = 0; d < size; d += W) {
    V part = load(query + d);
#pragma GCC unroll 16
    for (int c = 0; c < W; c++) sums[c] = fma(part, load(keys + (c < count ? c : 0) * stride + d), sums[c]);
  }
  store(scores, lane_sums(sums));
}

// One block of columns for rows that are held one by one: the form for few rows. Widens the running sums of each row.
void attend_few(const float* queries, long rows, long size, const float* keys, long key_stride, const float* values,
                long value_stride, long columns, const long* visible, SoftmaxState state) {
  for (long row = 0; row < rows; row++) {
    long seen = visible[row] < columns ? visible[row] : columns;
    if (seen <= 0) continue;
    alignas(64) float scores[kFewColumns + W];
    for (long c = 0; c < seen; c += W) {
      long count = seen - c < W ? seen - c : W;
      few_scores(queries + row * size, keys + c * key_stride, key_stride, count, size, scores + c);
    }
    float most = largest(scores, seen, state.most[row]);
    // Scores behind those seen are one of them again.
    bool is_spoilt = is_unbounded(scores, (seen + W - 1) / W * W);
    if (most == -INFINITY && !is_spoilt) continue;
    float kept = state.most[row] == most ? 1.0f : std::exp(state.most[row] - most);
    state.most[row] = most;
    for (long c = seen; c % W != 0; c++) scores[c] = -INFINITY;
    V total = zero();
    for (long c = 0; c < seen; c += W) {
      V weight = exp(sub(load(scores + c), set1(most)));
      store(scores + c, weight);
    }
    for (long c = seen; c % W != 0; c++) scores[c] = 0.0f;
    for (long c = 0; c < seen; c += W) total = add(total, load(scores + c));
    state.total[row] = is_spoilt ? NAN : state.total[row] * kept + sum(total);
    float* out = state.sums + row * size;
    for (long d = 0; d < size;) {
      constexpr int kStep = 4;
      int vectors = size - d >= kStep * W ? kStep : 1;
      V parts[kStep];
      for (int v = 0; v < vectors; v++) parts[v] = mul(load(out + d + v * W), set1(kept));
      for (long c = 0; c < seen; c++) {
        V weight = set1(scores[c]);
        for (int v = 0; v < vectors; v++) parts[v] = fma(weight, load(values + c * value_stride + d + v * W), parts[v]);
      }
      for (int v = 0; v < vectors; v++) store(out + d + v * W, parts[v]);
      d += vectors * W;
    }
  }
}

// Turns a tile of scores [kTileRows][columns] into weights, [columns][kTileRows] for the product with the values, and
// rescales the running sums.
void weigh_tile(float* scores, long columns, long size, const long* visible, SoftmaxState state, float* packed) {
  for (int row = 0; row < kTileRows; row++) {
    float* line = scores + row * columns;
    long seen = visible[row] < columns ? visible[row] : columns;
    if (seen < 0) seen = 0;
    float most = largest(line, seen, state.most[row]);
    bool is_spoilt = is_unbounded(line, seen);
    if (most == -INFINITY) seen = 0;
    float kept = state.most[row] == most ? 1.0f : std::exp(state.most[row] - most);
    state.most[row] = most;
    V total = zero();
    for (long c = 0; c < columns; c += W) {
      V weight = zero();
      if (c < seen) {
        weight = exp(sub(load(line + c), set1(most)));
        if (seen - c < W) {
          store(line + c, weight);
          for (long hidden = seen; hidden < c + W; hidden++) line[hidden] = 0.0f;
          weight = load(line + c);
        }
      }
      store(line + c, weight);
      total = add(total, weight);
    }
    state.total[row] = is_spoilt ? NAN : state.total[row] * kept + sum(total);
    float* out = state.sums + row * size;
    if (kept != 1.0f)
      for (long d = 0; d < size; d += W) store(out + d, mul(load(out + d), set1(kept)));
    for (long c = 0; c < columns; c++) packed[c * kTileRows + row] = line[c];
  }
}
