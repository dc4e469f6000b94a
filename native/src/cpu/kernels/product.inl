// Products for many rows: packed tiles of both operands, accumulated in registers.

constexpr int kTileColumns = kTileVectors * W;

void pack_left(const float* x, long x_stride, long count, long begin, long end, float* packed) {
  for (int m = 0; m < kTileRows; m++) {
    if (m < count) {
      const float* row = x + m * x_stride;
      for (long k = begin; k < end; k++) packed[(k - begin) * kTileRows + m] = row[k];
    } else {
      for (long k = begin; k < end; k++) packed[(k - begin) * kTileRows + m] = 0.0f;
    }
  }
}

// The scales or biases of W rows at one group.
template <class S>
inline V column_of(const S* values, long stride) {
  float lanes[W];
  for (int l = 0; l < W; l++) lanes[l] = to_float(values[l * stride]);
  return load(lanes);
}

template <int Bits, class S>
struct PackQuantized {
  // W rows from `row` on, all of which exist.
  static void vectors(const QuantizedMatrix& matrix, long row, long begin, long end, float* packed) {
    const uint32_t* words = matrix.weight + row * matrix.row_words();
    const S* scales = static_cast<const S*>(matrix.scales) + row * matrix.row_groups();
    const S* biases = static_cast<const S*>(matrix.biases) + row * matrix.row_groups();
    long k = begin;
    while (k < end) {
      long group = k / matrix.group;
      long stop = (group + 1) * matrix.group < end ? (group + 1) * matrix.group : end;
      V scale = column_of(scales + group, matrix.row_groups());
      V bias = column_of(biases + group, matrix.row_groups());
      for (; k < stop; k += 32) piece(words + k * Bits / 32, matrix.row_words(), scale, bias, packed + (k - begin) * kTileColumns);
    }
  }

  static inline void piece(const uint32_t* words, long stride, V scale, V bias, float* packed) {
    if constexpr (kInLanes<Bits>) {
      for (int w = 0; w < Bits; w++) {
        Words column = gather_words(words + w, stride);
#pragma GCC unroll 16
        for (int j = 0; j < 32 / Bits; j++)
          store(packed + (w * (32 / Bits) + j) * kTileColumns, fma(digit<Bits>(column, j * Bits), scale, bias));
      }
    } else {
      uint8_t digits[W][32];
      for (int l = 0; l < W; l++) spread_digits<Bits>(words + l * stride, digits[l]);
      for (int j = 0; j < 32; j++) {
        float lanes[W];
        for (int l = 0; l < W; l++) lanes[l] = float(digits[l][j]);
        store(packed + j * kTileColumns, fma(load(lanes), scale, bias));
      }
    }
  }

  static void run(const QuantizedMatrix& matrix, long first, long begin, long end, float* packed) {
    for (int v = 0; v < kTileVectors; v++) {
      long row = first + v * W;
      if (row + W <= matrix.rows) {
        vectors(matrix, row, begin, end, packed + v * W);
        continue;
      }
      // Rows that do not exist are taken from the last one; their results are never written.
      for (int l = 0; l < W; l++) {
        long one = row + l < matrix.rows ? row + l : matrix.rows - 1;
        for (long k = begin; k < end; k++) packed[(k - begin) * kTileColumns + v * W + l] = value(matrix, one, k);
      }
    }
  }

  static float value(const QuantizedMatrix& matrix, long row, long k) {
    const uint32_t* words = matrix.weight + row * matrix.row_words();
    long bit = k * Bits;
    uint64_t pair = words[bit / 32];
    if (bit % 32 + Bits > 32) pair |= uint64_t(words[bit / 32 + 1]) << 32;
    float digit = float((pair >> (bit % 32)) & ((1u << Bits) - 1));
    long at = row * matrix.row_groups() + k / matrix.group;
    return digit * to_float(static_cast<const S*>(matrix.scales)[at]) +
           to_float(static_cast<const S*>(matrix.biases)[at]);
  }
};

void pack_quantized(const QuantizedMatrix& matrix, long first, long begin, long end, float* packed) {
  with_bits<PackQuantized>(matrix, first, begin, end, packed);
}

template <class T>
void pack_dense_of(const DenseMatrix& matrix, long first, long begin, long end, float* packed) {
  const T* values = static_cast<const T*>(matrix.weight);
  for (int n = 0; n < kTileColumns; n++) {
    const T* row = values + (first + n < matrix.rows ? first + n : matrix.rows - 1) * matrix.stride;
    for (long k = begin; k < end; k++) packed[(k - begin) * kTileColumns + n] = to_float(row[k]);
  }
}

void pack_dense(const DenseMatrix& matrix, long first, long begin, long end, float* packed) {
  if (matrix.type == Type::f32) pack_dense_of<float>(matrix, first, begin, end, packed);
  else if (matrix.type == Type::f16) pack_dense_of<half_t>(matrix, first, begin, end, packed);
  else pack_dense_of<bfloat_t>(matrix, first, begin, end, packed);
}

void tile_product(const float* left, const float* right, long depth, bool accumulate, float* y, long y_stride,
                  long rows, long columns) {
  V sums[kTileRows][kTileVectors];
  for (int m = 0; m < kTileRows; m++)
    for (int v = 0; v < kTileVectors; v++) sums[m][v] = zero();
  for (long k = 0; k < depth; k++) {
    V weights[kTileVectors];
    for (int v = 0; v < kTileVectors; v++) weights[v] = load(right + k * kTileColumns + v * W);
#pragma GCC unroll 16
    for (int m = 0; m < kTileRows; m++) {
      V x = set1(left[k * kTileRows + m]);
      for (int v = 0; v < kTileVectors; v++) sums[m][v] = fma(x, weights[v], sums[m][v]);
    }
  }
  for (int m = 0; m < rows && m < kTileRows; m++) {
    float* row = y + m * y_stride;
    if (columns == kTileColumns) {
      for (int v = 0; v < kTileVectors; v++)
        store(row + v * W, accumulate ? add(load(row + v * W), sums[m][v]) : sums[m][v]);
    } else {
      float lanes[kTileColumns];
      for (int v = 0; v < kTileVectors; v++) store(lanes + v * W, sums[m][v]);
      for (long n = 0; n < columns; n++) row[n] = accumulate ? row[n] + lanes[n] : lanes[n];
    }
  }
}
