// Functions of vectors.

// e to the power of x, for any x: below -87 it gives 0 or nearly, above 88 the largest floats. At most 2 units in the
// last place off, after Cody and Waite's reduction and a polynomial of Cephes.
inline V exp(V x) {
  x = min(max(x, set1(-87.3f)), set1(88.3f));
  V n = round(mul(x, set1(1.44269504f)));
  V r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  V p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = add(fma(p, mul(r, r), r), set1(1.0f));
  return mul(p, exponent(n));
}

inline V sigmoid(V x) {
  return div(set1(1.0f), add(set1(1.0f), exp(sub(zero(), x))));
}

// Whether one of these is NaN or +inf, which `largest` may pass over and `exp` does not show.
inline bool is_unbounded(const float* values, long count) {
  constexpr float kMost = 3.40282347e38f;
  constexpr uint32_t kAll = (1u << W) - 1;
  long whole = count / W * W;
  for (long i = whole; i < count; i++)
    if (!(values[i] <= kMost)) return true;
  // Their sum is so if one of them is, and hardly ever otherwise.
  V total = zero();
  for (long i = 0; i < whole; i += W) total = add(total, load(values + i));
  if (at_least(set1(kMost), total) == kAll) return false;
  for (long i = 0; i < whole; i += W)
    if (at_least(set1(kMost), load(values + i)) != kAll) return true;
  return false;
}

inline float largest(const float* values, long count, float least) {
  long whole = count / W * W;
  V most = set1(least);
  for (long i = 0; i < whole; i += W) most = max(most, load(values + i));
  float lanes[W];
  store(lanes, most);
  for (int l = 0; l < W; l++) least = lanes[l] > least ? lanes[l] : least;
  for (long i = whole; i < count; i++) least = values[i] > least ? values[i] : least;
  return least;
}
