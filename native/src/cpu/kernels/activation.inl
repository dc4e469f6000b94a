// Gated activations: y = f(gate) * x.

inline V silu(V gate) {
  return mul(gate, sigmoid(gate));
}

// The tanh approximation of GELU: gate * sigmoid(2 * sqrt(2 / pi) * (gate + 0.044715 gate^3)).
inline V gelu(V gate) {
  V cube = mul(mul(gate, gate), gate);
  return mul(gate, sigmoid(mul(set1(1.5957691216f), fma(set1(0.044715f), cube, gate))));
}

template <V (*F)(V)>
void gated(const float* gate, const float* x, float* y, long count) {
  long whole = count / W * W;
  for (long i = 0; i < whole; i += W) store(y + i, mul(F(load(gate + i)), load(x + i)));
  if (whole == count) return;
  float gates[W] = {}, values[W] = {};
  for (long i = whole; i < count; i++) gates[i - whole] = gate[i], values[i - whole] = x[i];
  V result = mul(F(load(gates)), load(values));
  store(gates, result);
  for (long i = whole; i < count; i++) y[i] = gates[i - whole];
}

void gate_rows(Activation activation, const float* gate, const float* x, float* y, long count) {
  if (activation == Activation::silu) gated<silu>(gate, x, y, count);
  else gated<gelu>(gate, x, y, count);
}
