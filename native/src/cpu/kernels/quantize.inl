// Between floats and digits in groups, each with a scale and a bias.

// Of consecutive digits.
template <int Bits, class S>
struct WidenRows {
  static void run(const QuantizedMatrix& matrix, float* target) {
    const uint8_t* bytes = reinterpret_cast<const uint8_t*>(matrix.weight);
    const S* scales = static_cast<const S*>(matrix.scales);
    const S* biases = static_cast<const S*>(matrix.biases);
    for (long group = 0; group < matrix.rows * matrix.row_groups(); group++) {
      V scale = set1(to_float(scales[group])), bias = set1(to_float(biases[group]));
      for (int k = 0; k < matrix.group; k += W) {
        V digits = Bits == 4 ? load_nibbles(bytes) : load_bytes(bytes);
        store(target, fma(digits, scale, bias));
        target += W;
        bytes += W * Bits / 8;
      }
    }
  }
};

void widen_quantized(const QuantizedMatrix& matrix, float* target) {
  if (matrix.bits == 4) with_type<WidenRows, 4>(matrix, target);
  else with_type<WidenRows, 8>(matrix, target);
}

// A group's scale and bias, as MLX chooses them: of its two ends the one that is further from 0 is met exactly, and so is 0.
inline void choose_scale(const float* x, int group, float most_digit, float& scale, float& bias) {
  V low = set1(INFINITY), high = set1(-INFINITY);
  for (int i = 0; i < group; i += W) {
    low = min(load(x + i), low);
    high = max(load(x + i), high);
  }
  float lows[W], highs[W];
  store(lows, low);
  store(highs, high);
  float least = lows[0], most = highs[0];
  for (int l = 1; l < W; l++) {
    least = lows[l] < least ? lows[l] : least;
    most = highs[l] > most ? highs[l] : most;
  }
  bool is_negative = std::fabs(least) > std::fabs(most);
  float step = (most - least) / most_digit, edge = is_negative ? least : most;
  scale = step > 1e-7f ? step : 1e-7f;
  if (!is_negative) scale = -scale;
  float steps = std::nearbyint(edge / scale);
  bias = 0.0f;
  if (steps != 0.0f) {
    scale = edge / steps;
    bias = edge;
  }
}

void quantize(const float* x, long count, int group, int bits, uint32_t* words, float* scales, float* biases) {
  float most_digit = float((1 << bits) - 1);
  char* target = reinterpret_cast<char*>(words);
  for (long first = 0; first < count; first += group, scales++, biases++) {
    choose_scale(x + first, group, most_digit, *scales, *biases);
    V scale = set1(*scales), bias = set1(*biases), most = set1(most_digit);
    for (int k = 0; k < group; k += 32) {
      float digits[32];
      for (int v = 0; v < 32; v += W) {
        V steps = div(sub(load(x + first + k + v), bias), scale);
        // Added to 2^23 a number is rounded to the nearest integer, and that stands in its lowest bits.
        store(digits + v, add(min(max(steps, zero()), most), set1(0x1p23f)));
      }
      uint8_t bytes[32];
      for (int i = 0; i < 32; i++) bytes[i] = uint8_t(std::bit_cast<uint32_t>(digits[i]));
      if (bits == 4)
        for (int i = 0; i < 16; i++) bytes[i] = uint8_t(bytes[2 * i] | bytes[2 * i + 1] << 4);
      std::memcpy(target, bytes, size_t(4 * bits));
      target += 4 * bits;
    }
  }
}
