// Normalisation of rows, accumulated in float.

// y = x / sqrt(mean(x^2) + eps) * weight; a null weight stands for ones.
void rms_norm(const float* x, const float* weight, float eps, float* y, long columns) {
  long whole = columns / W * W;
  V squares[2] = {zero(), zero()};
  for (long i = 0; i < whole; i += W) {
    V value = load(x + i);
    squares[(i / W) & 1] = fma(value, value, squares[(i / W) & 1]);
  }
  float total = sum(add(squares[0], squares[1]));
  for (long i = whole; i < columns; i++) total += x[i] * x[i];
  float factor = 1.0f / std::sqrt(total / float(columns) + eps);
  for (long i = 0; i < whole; i += W) {
    V value = mul(load(x + i), set1(factor));
    store(y + i, weight ? mul(value, load(weight + i)) : value);
  }
  for (long i = whole; i < columns; i++) y[i] = x[i] * factor * (weight ? weight[i] : 1.0f);
}

// y = (x - mean) / sqrt(variance + eps) * weight + bias; null pointers stand for ones and zeros.
void layer_norm(const float* x, const float* weight, const float* bias, float eps, float* y, long columns) {
  float total = 0.0f;
  long whole = columns / W * W;
  V totals = zero();
  for (long i = 0; i < whole; i += W) totals = add(totals, load(x + i));
  total = sum(totals);
  for (long i = whole; i < columns; i++) total += x[i];
  float mean = total / float(columns);
  V squares = zero();
  for (long i = 0; i < whole; i += W) {
    V value = sub(load(x + i), set1(mean));
    squares = fma(value, value, squares);
  }
  float variance = sum(squares);
  for (long i = whole; i < columns; i++) variance += (x[i] - mean) * (x[i] - mean);
  float factor = 1.0f / std::sqrt(variance / float(columns) + eps);
  for (long i = 0; i < columns; i++)
    y[i] = (x[i] - mean) * factor * (weight ? weight[i] : 1.0f) + (bias ? bias[i] : 0.0f);
}
