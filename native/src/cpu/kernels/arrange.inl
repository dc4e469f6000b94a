// The order of x that quantized.inl expects.

inline int vectors_of(int bits) {
  return bits == 2 || bits == 4 || bits == 8 ? 32 / bits : 0;
}

long arranged_size(long columns, int bits) {
  long block = vectors_of(bits) ? vectors_of(bits) * W : 32;
  return (columns + block - 1) / block * block;
}

template <int Vectors>
void arrange_lanes(const float* x, long columns, float* arranged) {
  constexpr long block = Vectors * W;
  long whole = columns / block * block;
  for (long start = 0; start < whole; start += block)
    for (int j = 0; j < Vectors; j++) store(arranged + start + j * W, gather(x + start + j, Vectors));
  if (whole == columns) return;
  for (int j = 0; j < Vectors; j++)
    for (int lane = 0; lane < W; lane++) {
      long k = whole + lane * Vectors + j;
      arranged[whole + j * W + lane] = k < columns ? x[k] : 0.0f;
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
