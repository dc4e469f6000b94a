// The order of x that quantized.inl expects: block by block, for digits in lanes with a vector of sums behind each block,
// of what meets the digits of one word.

inline int vectors_of(int bits) {
  return bits == 2 || bits == 4 || bits == 8 ? 32 / bits : 0;
}

long arranged_size(long columns, int bits) {
  long vectors = vectors_of(bits), block = vectors ? vectors * W : 32;
  return (columns + block - 1) / block * (vectors ? block + W : block);
}

template <int Vectors>
void arrange_lanes(const float* x, long columns, float* arranged) {
  constexpr long block = Vectors * W;
  float padded[block];
  for (long start = 0; start < columns; start += block, arranged += block + W) {
    const float* from = x + start;
    if (columns - start < block) {
      for (long k = 0; k < block; k++) padded[k] = start + k < columns ? x[start + k] : 0.0f;
      from = padded;
    }
    V total = zero();
    for (int j = 0; j < Vectors; j++) {
      V values = gather(from + j, Vectors);
      store(arranged + j * W, values);
      total = add(total, values);
    }
    store(arranged + block, total);
  }
}

void arrange(const float* x, long columns, int bits, float* arranged) {
  switch (vectors_of(bits)) {
    case 16: return arrange_lanes<16>(x, columns, arranged);
    case 8: return arrange_lanes<8>(x, columns, arranged);
    case 4: return arrange_lanes<4>(x, columns, arranged);
    default: std::memcpy(arranged, x, size_t(columns) * 4);
  }
}
