// Products with a dense matrix for few rows of x: the matrix is read from memory once, and widened in registers.

// Rows of fewer bytes are read one after the other: as one stream memory gives them a fifth faster than as several that
// break off and begin again. Longer ones are read several at a time, which then share what is loaded of x.
constexpr long kLongRow = 12 * 1024;
// How far ahead of its use one stream is fetched.
constexpr long kStreamAhead = 2048;
// What of a matrix meets all rows of x before more of it is read: it stays within the second-level cache.
constexpr long kBlockBytes = 64 * 1024;
// Rows of x that meet a row of the matrix together, at most.
constexpr int kTogether = 6;

// Adds what `Count` vectors from column k on give; each has sums of its own.
template <class T, int Count, int M, int N, int Vectors>
inline void dense_step(const T* const (&rows)[N], const float* const (&x)[M], long k, long ahead,
                       V (&sums)[N][M][Vectors]) {
#pragma GCC unroll 4
  for (int n = 0; n < N; n++) prefetch(rows[n] + k + ahead, Count * W * long(sizeof(T)));
#pragma GCC unroll 4
  for (int j = 0; j < Count; j++) {
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

// N rows of the matrix at a time with M rows of x, of which `count` are there. One row of the matrix goes on in the next;
// several are fetched whole rows ahead.
template <class T, int M, int N, int Vectors>
void dense_tile(const DenseMatrix& matrix, long first, long last, const float* x, long x_stride, long count, float* y,
                long y_stride) {
  const T* values = static_cast<const T*>(matrix.weight);
  long rows_ahead = kBytesAhead / (matrix.stride * long(sizeof(T))) + 1;
  long ahead = N == 1 ? kStreamAhead / long(sizeof(T)) : (rows_ahead < N ? N : rows_ahead) * matrix.stride;
  const float* inputs[M];
  for (int m = 0; m < M; m++) inputs[m] = x + x_stride * (m < count ? m : count - 1);
  for (long row = first; row < last; row += N) {
    const T* rows[N];
    for (int n = 0; n < N; n++) rows[n] = values + (row + n < last ? row + n : last - 1) * matrix.stride;
    V sums[N][M][Vectors];
    for (auto& of_row : sums)
      for (auto& of_x : of_row)
        for (V& each : of_x) each = zero();
    long k = 0;
    for (; k + Vectors * W <= matrix.columns; k += Vectors * W) dense_step<T, Vectors>(rows, inputs, k, ahead, sums);
    for (; k + W <= matrix.columns; k += W) dense_step<T, 1>(rows, inputs, k, ahead, sums);
    for (int n = 0; n < N && row + n < last; n++)
      for (int m = 0; m < M && m < count; m++) {
        V joined = sums[n][m][0];
        for (int j = 1; j < Vectors; j++) joined = add(joined, sums[n][m][j]);
        float total = sum(joined);
        for (long rest = k; rest < matrix.columns; rest++) total += to_float(rows[n][rest]) * inputs[m][rest];
        y[m * y_stride + row + n] = total;
      }
  }
}

template <class T>
void dense_rows_of(const DenseMatrix& matrix, long first, long last, const float* x, long x_stride, long count,
                   float* y, long y_stride) {
  long row_bytes = matrix.stride * long(sizeof(T));
  long tiles = (count + kTogether - 1) / kTogether;
  long block = tiles == 1 ? last - first : kBlockBytes / row_bytes / 4 * 4 + 4;
  for (long row = first; row < last; row += block)
    for (long tile = 0; tile < tiles; tile++) {
      long begin = count * tile / tiles, rows = count * (tile + 1) / tiles - begin;
      long end = row + block < last ? row + block : last;
      const float* in = x + begin * x_stride;
      float* out = y + begin * y_stride;
      if (rows == 1 && row_bytes < kLongRow) dense_tile<T, 1, 1, 4>(matrix, row, end, in, x_stride, rows, out, y_stride);
      else if (rows == 1) dense_tile<T, 1, 4, 2>(matrix, row, end, in, x_stride, rows, out, y_stride);
      else if (rows <= 3) dense_tile<T, 3, 4, 1>(matrix, row, end, in, x_stride, rows, out, y_stride);
      else if (rows == 4) dense_tile<T, 4, 4, 1>(matrix, row, end, in, x_stride, rows, out, y_stride);
      else dense_tile<T, kTogether, 4, 1>(matrix, row, end, in, x_stride, rows, out, y_stride);
    }
}

void dense_rows(const DenseMatrix& matrix, long first, long last, const float* x, long x_stride, long count, float* y,
                long y_stride) {
  if (matrix.type == Type::f32) dense_rows_of<float>(matrix, first, last, x, x_stride, count, y, y_stride);
  else if (matrix.type == Type::f16) dense_rows_of<half_t>(matrix, first, last, x, x_stride, count, y, y_stride);
  else dense_rows_of<bfloat_t>(matrix, first, last, x, x_stride, count, y, y_stride);
}
