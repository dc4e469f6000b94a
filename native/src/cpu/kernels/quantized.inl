// Products with a quantised matrix for few rows of x: digits become floats in registers and meet all rows of x.
//
// Digits of 2, 4 and 8 bits: a vector of words holds 32 / Bits digits a lane; shifting by Bits gives a vector of digits
// that are 32 / Bits apart, and x is arranged in just this order. Digits of 3, 5 and 6 bits: blocks of 32, and x keeps its
// order; a lane takes its digit out of one or two words, or where lanes cannot, the block is spread to bytes.

template <int Bits>
constexpr bool kInLanes = Bits == 2 || Bits == 4 || Bits == 8;
template <int Bits>
constexpr int kVectors = kInLanes<Bits> ? 32 / Bits : 32 / W;
template <int Bits>
constexpr long kBlock = kVectors<Bits> * W;
template <int Bits>
constexpr long kBlockWords = kBlock<Bits> * Bits / 32;
// Floats of arranged x a block.
template <int Bits>
constexpr long kArranged = kInLanes<Bits> ? kBlock<Bits> + W : kBlock<Bits>;
// The digits of a word, which share a scale and a bias, meet x as they are, and the sums are scaled: where it
// was measured to be faster, which with few registers is for few rows.
template <int Bits, int M>
constexpr bool kScalesSums = kInLanes<Bits> && M <= (kRegisters == 32 ? 6 : 4);
// The most rows of x in one pass over the matrix: more where finding digits costs more than their products.
template <int Bits>
constexpr long kPass = kInLanes<Bits> ? 6 : 8;
// Bytes of eight rows of x up to which one pass costs less than two of four: they stay in the first-level cache.
constexpr long kEightFit = kRegisters == 32 ? 32 * 1024 : 0;

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
constexpr bool kInBytes = !kInLanes<Bits> && !kUnpacksWords;

template <int Bits>
struct Digits {
  Words words;
  uint8_t bytes[kInBytes<Bits> ? 32 : 1];

  // `count` words are there; the others count as zeros. Blocks of 32 digits are always complete.
  inline void read(const uint32_t* p, int count) {
    if constexpr (kInBytes<Bits>) spread_digits<Bits>(p, bytes);
    else if constexpr (!kInLanes<Bits>) words = load_words(p, Bits);
    else if (count == W) words = held(load_words(p));
    else words = load_words(p, count);
  }
  inline V vector(int j) const {
    if constexpr (kInBytes<Bits>) return load_bytes(bytes + j * W);
    else if constexpr (!kInLanes<Bits>) return unpack<Bits>(words, j);
    else return digit<Bits>(words, j * Bits);
  }
};

// N rows of the matrix, read block by block. The strides are 0 where one row stands in for all.
template <class S>
struct RowCursor {
  const uint32_t* words;
  const S* scales;
  const S* biases;
  long word_stride;
  long group_stride;

  RowCursor(const QuantizedMatrix& matrix, long row, bool together)
      : words(matrix.weight + row * matrix.row_words()),
        scales(static_cast<const S*>(matrix.scales) + row * matrix.row_groups()),
        biases(static_cast<const S*>(matrix.biases) + row * matrix.row_groups()),
        word_stride(together ? matrix.row_words() : 0),
        group_stride(together ? matrix.row_groups() : 0) {}
};

// How far ahead of its use a matrix is fetched: memory answers in the time that a core computes with about so much.
constexpr long kBytesAhead = 8192;

inline void prefetch(const void* p) {
  __builtin_prefetch(p);
}

// What begins here and ends `bytes` further on.
inline void prefetch(const void* p, long bytes) {
  for (long at = 0; at < bytes; at += 64) prefetch(static_cast<const char*>(p) + at);
}

// Adds a block of `words` words a row. Each row of the matrix has kChains sums for each row of x, so that enough
// additions are under way at once.
template <int Bits, class S, int M, int N, int Chains>
inline void block_step(const RowCursor<S>& rows, long block, int words, long group_index, const Spread& spread,
                       int groups, long ahead, const float* const (&x)[M], V (&sums)[N][M][Chains]) {
  V scale[N], bias[N];
  Digits<Bits> digits[N];
#pragma GCC unroll 4
  for (int n = 0; n < N; n++) {
    scale[n] = spread(rows.scales + group_index + n * rows.group_stride, groups);
    bias[n] = spread(rows.biases + group_index + n * rows.group_stride, groups);
    const uint32_t* next = rows.words + block * kBlockWords<Bits> + n * rows.word_stride;
    digits[n].read(next, words);
    // Rows are short and several are read at once, which defeats the processor's own prediction.
    prefetch(next + ahead);
  }
  if constexpr (kScalesSums<Bits, M>) {
    V parts[N][M];
#pragma GCC unroll 16
    for (int j = 0; j < kVectors<Bits>; j++) {
#pragma GCC unroll 6
      for (int m = 0; m < M; m++) {
        V value = held(load(x[m] + block * kArranged<Bits> + j * W));
#pragma GCC unroll 4
        for (int n = 0; n < N; n++)
          parts[n][m] = j == 0 ? mul(digits[n].vector(j), value) : fma(digits[n].vector(j), value, parts[n][m]);
      }
    }
#pragma GCC unroll 6
    for (int m = 0; m < M; m++) {
      V total = load(x[m] + block * kArranged<Bits> + kBlock<Bits>);
#pragma GCC unroll 4
      for (int n = 0; n < N; n++)
        sums[n][m][0] = fma(parts[n][m], scale[n], fma(total, bias[n], sums[n][m][0]));
    }
  } else {
#pragma GCC unroll 16
    for (int j = 0; j < kVectors<Bits>; j++) {
      V weight[N];
#pragma GCC unroll 4
      for (int n = 0; n < N; n++) weight[n] = fma(digits[n].vector(j), scale[n], bias[n]);
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        V value = held(load(x[m] + block * kArranged<Bits> + j * W));
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) sums[n][m][j % Chains] = fma(weight[n], value, sums[n][m][j % Chains]);
      }
    }
  }
}

// The sum of each row's chains: many at once where there are many.
template <int N, int M, int Chains>
inline void total(const V (&sums)[N][M][Chains], float* totals) {
  V joined[(N * M + W - 1) / W * W];
#pragma GCC unroll 16
  for (int i = 0; i < (N * M + W - 1) / W * W; i++) {
    joined[i] = i < N * M ? sums[i / M % N][i % M][0] : zero();
    for (int c = 1; c < Chains && i < N * M; c++) joined[i] = add(joined[i], sums[i / M % N][i % M][c]);
  }
  if (2 * N * M < W) {
    for (int i = 0; i < N * M; i++) totals[i] = sum(joined[i]);
    return;
  }
  for (int i = 0; i < N * M; i += W) {
    V part[W];
#pragma GCC unroll 16
    for (int l = 0; l < W; l++) part[l] = joined[i + l];
    store(totals + i, lane_sums(part));
  }
}

template <int Bits, class S, int M, int N, int Chains>
void quantized_tile(const QuantizedMatrix& matrix, long first, long last, const float* arranged, long size, long count,
                    float* y, long y_stride) {
  const float* x[M];
  for (int m = 0; m < M; m++) x[m] = arranged + size * (m < count ? m : count - 1);
  int groups = matrix.group < kBlock<Bits> ? int(kBlock<Bits> / matrix.group) : 1;
  int blocks_a_group = matrix.group > kBlock<Bits> ? int(matrix.group / kBlock<Bits>) : 1;
  int shift = std::countr_zero(unsigned(blocks_a_group));
  Spread spread(groups);
  long blocks = matrix.columns / kBlock<Bits>, rest = matrix.columns - blocks * kBlock<Bits>;
  // Not within the rows that are being read.
  long rows_ahead = kBytesAhead / (matrix.row_words() * 4) + 1;
  if (rows_ahead < N) rows_ahead = N;
  long ahead = rows_ahead * matrix.row_words();
  long scales_ahead = rows_ahead * matrix.row_groups(), scales_bytes = N * matrix.row_groups() * long(sizeof(S));
  for (long row = first; row < last;) {
    bool together = row + N <= last;
    RowCursor<S> rows(matrix, row, together);
    prefetch(rows.scales + scales_ahead, scales_bytes);
    prefetch(rows.biases + scales_ahead, scales_bytes);
    V sums[N][M][Chains];
    for (auto& of_row : sums)
      for (auto& chains : of_row)
        for (V& each : chains) each = zero();
    for (long block = 0; block < blocks; block++)
      block_step<Bits, S, M, N, Chains>(rows, block, W, (block * groups) >> shift, spread, groups, ahead, x, sums);
    if (rest > 0)
      block_step<Bits, S, M, N, Chains>(rows, blocks, int(rest * Bits / 32), (blocks * groups) >> shift, spread,
                                        int((rest + matrix.group - 1) / matrix.group), ahead, x, sums);
    float totals[(N * M + W - 1) / W * W];
    total<N, M, Chains>(sums, totals);
    for (int n = 0; n < (together ? N : 1); n++)
      for (int m = 0; m < M && m < count; m++) y[m * y_stride + row + n] = totals[n * M + m];
    row += together ? N : 1;
  }
}

template <int Bits, class S>
void quantized_rows_of(const QuantizedMatrix& matrix, long first, long last, const float* arranged, long count,
                       float* y, long y_stride) {
  long size = arranged_size(matrix.columns, Bits);
  bool is_eight = count == 8 && count * size * long(sizeof(float)) <= kEightFit;
  long passes = is_eight ? 1 : (count + kPass<Bits> - 1) / kPass<Bits>;
  for (long m = 0; m < count; passes--) {
    long rows = (count - m + passes - 1) / passes;
    const float* x = arranged + m * size;
    float* out = y + m * y_stride;
    auto pass = [&](auto tile) { tile(matrix, first, last, x, size, rows, out, y_stride); };
    if (rows == 1) pass(quantized_tile<Bits, S, 1, 4, kScalesSums<Bits, 1> ? 1 : 2>);
    else if (rows == 2) pass(quantized_tile<Bits, S, 2, 4, 1>);
    else if (rows == 3) pass(quantized_tile<Bits, S, 3, 4, 1>);
    else if (rows == 4) pass(quantized_tile<Bits, S, 4, 2, 1>);
    else if (rows == 5) pass(quantized_tile<Bits, S, 5, 2, 1>);
    else if (rows == 6) pass(quantized_tile<Bits, S, 6, 2, 1>);
    else pass(quantized_tile<Bits, S, 8, 2, 1>);
    m += rows;
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
