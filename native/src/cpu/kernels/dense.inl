// Products with a dense matrix for few rows of x: each row of the matrix is read once, widened in registers.

template <class T, int M, int N>
void dense_tile(const DenseMatrix& matrix, long first, long last, const float* x, long x_stride, long count, float* y,
                long y_stride) {
  const T* values = static_cast<const T*>(matrix.weight);
  long whole = matrix.columns / W * W;
  for (long row = first; row < last; row += N) {
    const T* rows[N];
    for (int n = 0; n < N; n++) rows[n] = values + (row + n < last ? row + n : last - 1) * matrix.stride;
    const float* inputs[M];
    for (int m = 0; m < M; m++) inputs[m] = x + x_stride * (m < count ? m : count - 1);
    V sums[N][M];
    for (int n = 0; n < N; n++)
      for (int m = 0; m < M; m++) sums[n][m] = zero();
    for (long k = 0; k < whole; k += W) {
      V weights[N];
      for (int n = 0; n < N; n++) weights[n] = load(rows[n] + k);
      for (int m = 0; m < M; m++) {
        V value = load(inputs[m] + k);
        for (int n = 0; n < N; n++) sums[n][m] = fma(weights[n], value, sums[n][m]);
      }
    }
    for (int n = 0; n < N && row + n < last; n++)
      for (int m = 0; m < M && m < count; m++) {
        float total = sum(sums[n][m]);
        for (long k = whole; k < matrix.columns; k++) total += to_float(rows[n][k]) * inputs[m][k];
        y[m * y_stride + row + n] = total;
      }
  }
}

template <class T>
void dense_rows_of(const DenseMatrix& matrix, long first, long last, const float* x, long x_stride, long count,
                   float* y, long y_stride) {
  for (long m = 0; m < count; m += 6) {
    long rest = count - m < 6 ? count - m : 6;
    const float* in = x + m * x_stride;
    float* out = y + m * y_stride;
    if (rest == 1) dense_tile<T, 1, 4>(matrix, first, last, in, x_stride, rest, out, y_stride);
    else if (rest <= 3) dense_tile<T, 3, 4>(matrix, first, last, in, x_stride, rest, out, y_stride);
    else dense_tile<T, 6, 4>(matrix, first, last, in, x_stride, rest, out, y_stride);
  }
}

void dense_rows(const DenseMatrix& matrix, long first, long last, const float* x, long x_stride, long count, float* y,
                long y_stride) {
  if (matrix.type == Type::f32) dense_rows_of<float>(matrix, first, last, x, x_stride, count, y, y_stride);
  else if (matrix.type == Type::f16) dense_rows_of<half_t>(matrix, first, last, x, x_stride, count, y, y_stride);
  else dense_rows_of<bfloat_t>(matrix, first, last, x, x_stride, count, y, y_stride);
}
