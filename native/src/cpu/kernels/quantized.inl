// Products with a quantised matrix for few rows of x: digits become floats in registers and meet all rows of x.
//
// Digits of 2, 4 and 8 bits: a vector of words holds 32 / Bits digits a lane; shifting by Bits gives a vector of digits
// that are 32 / Bits apart, and x is arranged in just this order. Digits of 3, 5 and 6 bits: blocks of 32 are spread to
// bytes, and x keeps its order.

template <int Bits>
constexpr bool kInLanes = Bits == 2 || Bits == 4 || Bits == 8;
template <int Bits>
constexpr int kVectors = kInLanes<Bits> ? 32 / Bits : 32 / W;
template <int Bits>
constexpr long kBlock = kVectors<Bits> * W;
template <int Bits>
constexpr long kBlockWords = kBlock<Bits> * Bits / 32;

// Eight digits to eight bytes, for all pieces of a block of 32; reads no byte beyond the block.
template <int Bits>
inline void spread_digits(const uint32_t* words, uint8_t* digits) {
  const char* bytes = reinterpret_cast<const char*>(words);
  for (int piece = 0; piece < 4; piece++) {
    int start = piece * Bits < 4 * Bits - 8 ? piece * Bits : 4 * Bits - 8;
    uint64_t bits;
    std::memcpy(&bits, bytes + start, 8);
    uint64_t spread = to_bytes<Bits>(bits >> (8 * (piece * Bits - start)));
    std::memcpy(digits + 8 * piece, &spread, 8);
  }
}

template <int Bits>
struct Digits {
  Words words;
  uint8_t bytes[kInLanes<Bits> ? 1 : 32];

  explicit inline Digits(const uint32_t* p) {
    if constexpr (kInLanes<Bits>) words = load_words(p);
    else spread_digits<Bits>(p, bytes);
  }
  inline V vector(int j) const {
    if constexpr (kInLanes<Bits>) return digit<Bits>(words, j * Bits);
    else return load_bytes(bytes + j * W);
  }
};

// One row of the matrix, read block by block.
template <int Bits, class S>
struct RowCursor {
  const uint32_t* words;
  const S* scales;
  const S* biases;

  RowCursor() = default;
  RowCursor(const QuantizedMatrix& matrix, long row)
      : words(matrix.weight + row * matrix.row_words()),
        scales(static_cast<const S*>(matrix.scales) + row * matrix.row_groups()),
        biases(static_cast<const S*>(matrix.biases) + row * matrix.row_groups()) {}
};

template <int Bits>
inline Spread spread_of(int group) {
  return Spread(group < kBlock<Bits> ? int(kBlock<Bits> / group) : 1);
}

template <int Bits, class S, int M, int N>
inline void block_step(const RowCursor<Bits, S> (&rows)[N], long block, long group_index, const Spread& spread,
                       const float* const (&x)[M], V (&sums)[N][M]) {
  V scale[N], bias[N];
  for (int n = 0; n < N; n++) {
    scale[n] = spread(rows[n].scales + group_index);
    bias[n] = spread(rows[n].biases + group_index);
  }
  if constexpr (N == 1) {
    Digits<Bits> digits(rows[0].words + block * kBlockWords<Bits>);
#pragma GCC unroll 16
    for (int j = 0; j < kVectors<Bits>; j++) {
      V weight = fma(digits.vector(j), scale[0], bias[0]);
      for (int m = 0; m < M; m++) sums[0][m] = fma(weight, load(x[m] + block * kBlock<Bits> + j * W), sums[0][m]);
    }
  } else {
    Digits<Bits> first(rows[0].words + block * kBlockWords<Bits>);
    Digits<Bits> second(rows[1].words + block * kBlockWords<Bits>);
#pragma GCC unroll 16
    for (int j = 0; j < kVectors<Bits>; j++) {
      V one = fma(first.vector(j), scale[0], bias[0]);
      V two = fma(second.vector(j), scale[1], bias[1]);
      for (int m = 0; m < M; m++) {
        V value = load(x[m] + block * kBlock<Bits> + j * W);
        sums[0][m] = fma(one, value, sums[0][m]);
        sums[1][m] = fma(two, value, sums[1][m]);
      }
    }
  }
}

// The last, incomplete block of a row, copied beside zeros so that it can be read as a complete one.
template <int Bits, class S>
struct Tail {
  uint32_t words[kBlockWords<Bits>] = {};
  S scales[W] = {};
  S biases[W] = {};

  RowCursor<Bits, S> copy(const RowCursor<Bits, S>& row, const QuantizedMatrix& matrix) {
    long first = matrix.columns / kBlock<Bits> * kBlockWords<Bits>;
    long group = matrix.columns / kBlock<Bits> * kBlock<Bits> / matrix.group;
    std::memcpy(words, row.words + first, size_t(matrix.row_words() - first) * 4);
    std::memcpy(scales, row.scales + group, size_t(matrix.row_groups() - group) * sizeof(S));
    std::memcpy(biases, row.biases + group, size_t(matrix.row_groups() - group) * sizeof(S));
    RowCursor<Bits, S> cursor;
    cursor.words = words;
    cursor.scales = scales;
    cursor.biases = biases;
    return cursor;
  }
};

template <int Bits, class S, int M, int N>
void quantized_tile(const QuantizedMatrix& matrix, long first, long last, const float* arranged, long size, long count,
                    float* y, long y_stride) {
  const float* x[M];
  for (int m = 0; m < M; m++) x[m] = arranged + size * (m < count ? m : count - 1);
  Spread spread = spread_of<Bits>(matrix.group);
  long blocks = matrix.columns / kBlock<Bits>;
  for (long row = first; row < last; row += N) {
    RowCursor<Bits, S> rows[N];
    for (int n = 0; n < N; n++) rows[n] = RowCursor<Bits, S>(matrix, row + n < last ? row + n : last - 1);
    V sums[N][M];
    for (int n = 0; n < N; n++)
      for (int m = 0; m < M; m++) sums[n][m] = zero();
    for (long block = 0; block < blocks; block++)
      block_step<Bits, S, M, N>(rows, block, block * kBlock<Bits> / matrix.group, spread, x, sums);
    if (blocks * kBlock<Bits> < matrix.columns) {
      Tail<Bits, S> tails[N];
      for (int n = 0; n < N; n++) rows[n] = tails[n].copy(rows[n], matrix);
      const float* rest[M];
      for (int m = 0; m < M; m++) rest[m] = x[m] + blocks * kBlock<Bits>;
      block_step<Bits, S, M, N>(rows, 0, 0, spread, rest, sums);
    }
    for (int n = 0; n < N && row + n < last; n++)
      for (int m = 0; m < M && m < count; m++) y[m * y_stride + row + n] = sum(sums[n][m]);
  }
}

template <int Bits, class S>
void quantized_rows_of(const QuantizedMatrix& matrix, long first, long last, const float* arranged, long count,
                       float* y, long y_stride) {
  long size = arranged_size(matrix.columns, Bits);
  for (long m = 0; m < count; m += 8) {
    long rest = count - m < 8 ? count - m : 8;
    const float* x = arranged + m * size;
    float* out = y + m * y_stride;
    if (rest == 1) quantized_tile<Bits, S, 1, 2>(matrix, first, last, x, size, rest, out, y_stride);
    else if (rest == 2) quantized_tile<Bits, S, 2, 2>(matrix, first, last, x, size, rest, out, y_stride);
    else if (rest <= 4) quantized_tile<Bits, S, 4, 2>(matrix, first, last, x, size, rest, out, y_stride);
    else if (rest <= 6) quantized_tile<Bits, S, 6, 2>(matrix, first, last, x, size, rest, out, y_stride);
    else quantized_tile<Bits, S, 8, 2>(matrix, first, last, x, size, rest, out, y_stride);
  }
}

// Calls Function<Bits, S>::run for the matrix's own bits and type.
template <template <int, class> class Function, int Bits, class... Arguments>
inline void with_type(const QuantizedMatrix& matrix, Arguments... arguments) {
  if (matrix.type == Type::f32) Function<Bits, float>::run(matrix, arguments...);
  else if (matrix.type == Type::f16) Function<Bits, half_t>::run(matrix, arguments...);
  else Function<Bits, bfloat_t>::run(matrix, arguments...);
}

template <template <int, class> class Function, class... Arguments>
inline void with_bits(const QuantizedMatrix& matrix, Arguments... arguments) {
  switch (matrix.bits) {
    case 2: return with_type<Function, 2>(matrix, arguments...);
    case 3: return with_type<Function, 3>(matrix, arguments...);
    case 4: return with_type<Function, 4>(matrix, arguments...);
    case 5: return with_type<Function, 5>(matrix, arguments...);
    case 6: return with_type<Function, 6>(matrix, arguments...);
    default: return with_type<Function, 8>(matrix, arguments...);
  }
}

template <int Bits, class S>
struct QuantizedRows {
  static void run(const QuantizedMatrix& matrix, long first, long last, const float* arranged, long count, float* y,
                  long y_stride) {
    quantized_rows_of<Bits, S>(matrix, first, last, arranged, count, y, y_stride);
  }
};

void quantized_rows(const QuantizedMatrix& matrix, long first, long last, const float* arranged, long count, float* y,
                    long y_stride) {
  with_bits<QuantizedRows>(matrix, first, last, arranged, count, y, y_stride);
}
