// Products with a dense matrix for few rows of x: each row of the matrix is read once, widened in registers.

// Adds what Vectors vectors from column k on give; each has sums of its own.
template <class T, int M, int N, int Vectors>
inline void dense_step(const T* const (&rows)[N], const float* const (&x)[M], long k, long ahead,
                       V (&sums)[N][M][Vectors]) {
#pragma GCC unroll 4
  for (int n = 0; n < N; n++) prefetch(rows[n] + k + ahead);
#pragma GCC unroll 4
  for (int j = 0; j < Vectors; j++) {
    V weights[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) weights[n] = load(rows[n] + k + j * W);
#pragma GCC unroll 6
    for (int m = 0; m < M; m++) {
      V value = load(x[m] + k + j * W);
#pragma GCC unroll 4
      for (int n = 0; n < N; n++) sums[n][m][j] = fma(weights[n], value, sums[n][m][j]);
    }
  }
}

template <class T, int M, int N, int Vectors>
void dense_tile(const DenseMatrix& matrix, long first, long last, const float* x, long x_stride, long count, float* y,
                long y_stride) {
  const T* values = static_cast<const T*>(matrix.weight);
  long whole = matrix.columns / (Vectors * W) * (Vectors * W);
  long rows_ahead = kBytesAhead / (matrix.stride * long(sizeof(T))) + 1;
  if (rows_ahead < N) rows_ahead = N;
  long ahead = rows_ahead * matrix.stride;
  const float* inputs[M];
  for (int m = 0; m < M; m++) inputs[m] = x + x_stride * (m < count ? m : count - 1);
  for (long row = first; row < last; row += N) {
    const T* rows[N];
    for (int n = 0; n < N; n++) rows[n] = values + (row + n < last ? row + n : last - 1) * matrix.stride;
    V sums[N][M][Vectors];
    for (auto& of_row : sums)
      for (auto& of_x : of_row)
        for (V& each : of_x) each = zero();
    for (long k = 0; k < whole; k += Vectors * W) dense_step<T, M, N, Vectors>(rows, inputs, k, ahead, sums);
    for (int n = 0; n < N && row + n < last; n++)
      for (int m = 0; m < M && m < count; m++) {
        V joined = sums[n][m][0];
        for (int j = 1; j < Vectors; j++) joined = add(joined, sums[n][m][j]);
        float total = sum(joined);
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
    if (rest == 1) dense_tile<T, 1, 4, 2>(matrix, first, last, in, x_stride, rest, out, y_stride);
    else if (rest <= 3) dense_tile<T, 3, 4, 1>(matrix, first, last, in, x_stride, rest, out, y_stride);
    else dense_tile<T, 6, 4, 1>(matrix, first, last, in, x_stride, rest, out, y_stride);
  }
}

void dense_rows(const DenseMatrix& matrix, long first, long last, const float* x, long x_stride, long count, float* y,
                long y_stride) {
  if (matrix.type == Type::f32) dense_rows_of<float>(matrix, first, last, x, x_stride, count, y, y_stride);
  else if (matrix.type == Type::f16) dense_rows_of<half_t>(matrix, first, last, x, x_stride, count, y, y_stride);
  else dense_rows_of<bfloat_t>(matrix, first, last, x, x_stride, count, y, y_stride);
}
