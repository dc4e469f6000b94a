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

// Columns of a matrix that are packed at once, at most, and the groups that they may touch, in whole vectors.
constexpr long kPackedColumns = 1024;
constexpr long kPackedGroups = (kPackedColumns / 32 + 1 + W - 1) / W * W;

// The scales or biases of W rows at `count` groups: read row by row, given as columns.
template <class S>
struct GroupColumns {
  float columns[kPackedGroups][W];

  GroupColumns(const S* first, long stride, long count) {
    float rows[W][kPackedGroups];
    for (int l = 0; l < W; l++) widen_of(first + l * stride, rows[l], count);
    for (long group = 0; group < count; group += W) {
      Words square[W];
      for (int l = 0; l < W; l++) square[l] = bits_of(load(rows[l] + group));
      transpose(square);
      for (int l = 0; l < W; l++) store(columns[group + l], floats_of(square[l]));
    }
  }
};

template <int Bits, class S>
struct PackQuantized {
  // W rows from `row` on, all of which exist.
  static void vectors(const QuantizedMatrix& matrix, long row, long begin, long end, float* packed) {
    for (long part = begin; part < end; part += kPackedColumns)
      few_vectors(matrix, row, part, part + kPackedColumns < end ? part + kPackedColumns : end,
                  packed + (part - begin) * kTileColumns);
  }

  static void few_vectors(const QuantizedMatrix& matrix, long row, long begin, long end, float* packed) {
    int shift = std::countr_zero(unsigned(matrix.group));
    long stride = matrix.row_words(), first_group = begin >> shift;
    long groups = ((end - 1) >> shift) - first_group + 1, at = row * matrix.row_groups() + first_group;
    GroupColumns<S> scales(static_cast<const S*>(matrix.scales) + at, matrix.row_groups(), groups);
    GroupColumns<S> biases(static_cast<const S*>(matrix.biases) + at, matrix.row_groups(), groups);
    const uint32_t* words = matrix.weight + row * stride;
    auto weigh = [&](long k, V digits) {
      long group = (k >> shift) - first_group;
      store(packed + (k - begin) * kTileColumns, fma(digits, load(scales.columns[group]), load(biases.columns[group])));
    };
    long k = begin;
    if constexpr (kInLanes<Bits>) {
      constexpr int kDigits = 32 / Bits;
      auto weigh_words = [&](Words column, long first) {
#pragma GCC unroll 16
        for (int j = 0; j < kDigits; j++) weigh(first + j, digit<Bits>(column, j * Bits));
      };
      for (; k + W * kDigits <= end; k += W * kDigits) {
        Words square[W];
        for (int l = 0; l < W; l++) {
          const uint32_t* next = words + l * stride + k / kDigits;
          square[l] = load_words(next);
          prefetch(next + kTileColumns * stride);
        }
        transpose(square);
        for (int w = 0; w < W; w++) weigh_words(square[w], k + w * kDigits);
      }
      for (; k < end; k += kDigits) weigh_words(gather_words(words + k / kDigits, stride), k);
    } else {
      for (; k < end; k += 32) {
        Digits<Bits> rows[W];
        for (int l = 0; l < W; l++) rows[l].read(words + l * stride + k * Bits / 32, W);
        for (int j = 0; j < 32 / W; j++) {
          Words square[W];
          for (int l = 0; l < W; l++) square[l] = bits_of(rows[l].vector(j));
          transpose(square);
          for (int i = 0; i < W; i++) weigh(k + j * W + i, floats_of(square[i]));
        }
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
  for (int v = 0; v < kTileVectors; v++) {
    const T* rows[W];
    for (int l = 0; l < W; l++) {
      long row = first + v * W + l;
      rows[l] = values + (row < matrix.rows ? row : matrix.rows - 1) * matrix.stride;
    }
    float* target = packed + v * W;
    long k = begin;
    for (; k + W <= end; k += W) {
      Words square[W];
      for (int l = 0; l < W; l++) square[l] = bits_of(load(rows[l] + k));
      transpose(square);
      for (int i = 0; i < W; i++) store(target + (k - begin + i) * kTileColumns, floats_of(square[i]));
    }
    for (; k < end; k++)
      for (int l = 0; l < W; l++) target[(k - begin) * kTileColumns + l] = to_float(rows[l][k]);
  }
}

void pack_dense(const DenseMatrix& matrix, long first, long begin, long end, float* packed) {
  if (matrix.type == Type::f32) pack_dense_of<float>(matrix, first, begin, end, packed);
  else if (matrix.type == Type::f16) pack_dense_of<half_t>(matrix, first, begin, end, packed);
  else pack_dense_of<bfloat_t>(matrix, first, begin, end, packed);
}

template <int M>
void tile_product_of(const float* left, const float* right, long depth, bool accumulate, float* y, long y_stride,
                     long rows, long columns) {
  V sums[M][kTileVectors];
  for (int m = 0; m < M; m++)
    for (int v = 0; v < kTileVectors; v++) sums[m][v] = zero();
  for (long k = 0; k < depth; k++) {
    V weights[kTileVectors];
    for (int v = 0; v < kTileVectors; v++) weights[v] = load(right + k * kTileColumns + v * W);
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) {
      V x = set1(left[k * kTileRows + m]);
      for (int v = 0; v < kTileVectors; v++) sums[m][v] = fma(x, weights[v], sums[m][v]);
    }
  }
  for (int m = 0; m < M && m < rows; m++) {
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

// The last tile of x seldom has all its rows.
void tile_product(const float* left, const float* right, long depth, bool accumulate, float* y, long y_stride,
                  long rows, long columns) {
  constexpr int kThird = kTileRows / 3;
  auto product = rows <= kThird       ? tile_product_of<kThird>
                 : rows <= 2 * kThird ? tile_product_of<2 * kThird>
                                      : tile_product_of<kTileRows>;
  product(left, right, depth, accumulate, y, y_stride, rows, columns);
}
