// Rotary position embedding of one head: pairs (i, i + half), or (2i, 2i + 1) in the traditional form.

void rotate(const float* x, const float* cosines, const float* sines, long half, bool traditional, float* y) {
  if (traditional) {
    for (long i = 0; i < half; i++) {
      float a = x[2 * i], b = x[2 * i + 1];
      y[2 * i] = a * cosines[i] - b * sines[i];
      y[2 * i + 1] = a * sines[i] + b * cosines[i];
    }
    return;
  }
  long whole = half / W * W;
  for (long i = 0; i < whole; i += W) {
    V a = load(x + i), b = load(x + half + i), c = load(cosines + i), s = load(sines + i);
    store(y + i, sub(mul(a, c), mul(b, s)));
    store(y + half + i, fma(a, s, mul(b, c)));
  }
  for (long i = whole; i < half; i++) {
    float a = x[i], b = x[half + i];
    y[i] = a * cosines[i] - b * sines[i];
    y[half + i] = a * sines[i] + b * cosines[i];
  }
}
