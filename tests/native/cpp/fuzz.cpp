// Drives the kernels without MLX or Python, for the sanitizers: random shapes, every instruction set of this machine,
// arrays that end where they end. FAILED and status 1 when a result is off.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "block.hpp"
#include "draw.hpp"
#include "panels.hpp"
#include "pool.hpp"

using namespace mlx_serving::cpu;

namespace {

std::mt19937 generator(7);

long number(long least, long most) {
  return std::uniform_int_distribution<long>(least, most)(generator);
}

std::vector<float> numbers(long count, float size = 1.0f) {
  std::normal_distribution<float> normal(0.0f, size);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(generator);
  return values;
}

// Values rounded to a type, and what they are then.
struct Typed {
  std::vector<char> bytes;
  std::vector<float> values;
  Type type;
};

Type any_type() {
  return Type(number(0, 2));
}

Typed typed(long count, Type type, float size = 1.0f) {
  Typed result{{}, numbers(count, size), type};
  result.bytes.resize(static_cast<size_t>(count) * size_of(type));
  kernels().narrow(result.values.data(), result.bytes.data(), type, count);
  kernels().widen(result.bytes.data(), type, result.values.data(), count);
  return result;
}

Typed typed(long count) {
  return typed(count, any_type());
}

std::vector<float> widened(const std::vector<char>& bytes, Type type) {
  std::vector<float> values(bytes.size() / size_of(type));
  kernels().widen(bytes.data(), type, values.data(), long(values.size()));
  return values;
}

void check(bool holds, const char* what) {
  if (holds) return;
  std::printf("FAILED %s with %s\n", what, kernels().name);
  std::exit(1);
}

using Doubles = std::vector<double>;

// What results rounded to a type may be off, of the largest.
double bound_of(Type type) {
  return type == Type::f32 ? 2e-5 : type == Type::f16 ? 2e-3 : 1.6e-2;
}

bool close(const std::vector<float>& found, const Doubles& expected, double bound = bound_of(Type::f32)) {
  double largest = 1e-3;
  for (double each : expected) largest = std::max(largest, std::abs(each));
  for (size_t i = 0; i < found.size(); i++)
    if (!(std::abs(double(found[i]) - expected[i]) <= bound * largest)) return false;
  return found.size() == expected.size();
}

template <class A, class B>
double dot(const A* a, const B* b, long count) {
  double sum = 0.0;
  for (long i = 0; i < count; i++) sum += double(a[i]) * double(b[i]);
  return sum;
}

template <class Values>
Doubles product(const Values& x, const std::vector<float>& weight, long count, long rows, long columns) {
  Doubles y;
  for (long m = 0; m < count; m++)
    for (long n = 0; n < rows; n++) y.push_back(dot(&x[size_t(m * columns)], &weight[size_t(n * columns)], columns));
  return y;
}

// Digits, scales and biases, and what they stand for.
struct Quantized {
  std::vector<uint32_t> words;
  std::vector<char> scales, biases;
  std::vector<float> values;
  Type type;
  long rows, columns;
  int group, bits;

  QuantizedMatrix matrix() const {
    return {words.data(), scales.data(), biases.data(), type, rows, columns, group, bits};
  }
  // A slab, if the matrix has a row for each slot, head and column.
  Slab slab(long kv_heads, long capacity) const {
    return {{words.data(), type, kv_heads * capacity, capacity, 1}, scales.data(), biases.data(), bits, group};
  }
  // What digits, scales and biases stand for now.
  std::vector<float> widened() const {
    std::vector<float> wide, all_scales = ::widened(scales, type), all_biases = ::widened(biases, type);
    for (long i = 0; i < rows * columns; i++) {
      unsigned digit = 0;
      for (long b = 0, bit = i * bits; b < bits; b++, bit++) digit |= ((words[size_t(bit / 32)] >> (bit % 32)) & 1u) << b;
      wide.push_back(float(digit) * all_scales[size_t(i / group)] + all_biases[size_t(i / group)]);
    }
    return wide;
  }
  // The same in panels, kept in this; `rows` is a multiple of kPanelRows.
  void lay_out() {
    std::vector<uint32_t> given = words;
    digits_to_panels(given.data(), rows, columns * bits / 32, bits, words.data());
    for (auto* part : {&scales, &biases}) {
      if (type == Type::f32) *part = bytes_of(in_panels(elements<uint32_t>(*part), columns / group));
      else *part = bytes_of(in_panels(elements<uint16_t>(*part), columns / group));
    }
  }

 private:
  template <class T>
  static std::vector<T> elements(const std::vector<char>& bytes) {
    std::vector<T> values(bytes.size() / sizeof(T));
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }
  template <class T>
  static std::vector<char> bytes_of(const std::vector<T>& values) {
    std::vector<char> bytes(values.size() * sizeof(T));
    std::memcpy(bytes.data(), values.data(), bytes.size());
    return bytes;
  }
  template <class T>
  std::vector<T> in_panels(const std::vector<T>& from, long width) const {
    std::vector<T> to;
    for (long panel = 0; panel < rows; panel += kPanelRows)
      for (long k = 0; k < width; k++)
        for (long row = panel; row < panel + kPanelRows; row++) to.push_back(from[size_t(row * width + k)]);
    return to;
  }
};

Quantized quantized(long rows, long columns, int group, int bits, Type type, float size) {
  Typed scales = typed(rows * columns / group, type, size), biases = typed(rows * columns / group, type, size);
  Quantized result{{}, scales.bytes, biases.bytes, {}, type, rows, columns, group, bits};
  for (long i = 0; i < rows * columns * bits / 32; i++) result.words.push_back(uint32_t(generator()));
  result.values = result.widened();
  return result;
}

Quantized quantized(long rows, long columns, int group, int bits, float size = 1.0f) {
  return quantized(rows, columns, group, bits, any_type(), size);
}

// y of x in any type, in x's type, against what it should be.
template <class Matrix>
void check_product(const Matrix& matrix, const std::vector<float>& weight, long count, const char* what) {
  Typed x = typed(count * matrix.columns);
  std::vector<char> y(size_t(count * matrix.rows) * size_of(x.type));
  multiply(matrix, {x.bytes.data(), x.type, count, matrix.columns}, {y.data(), x.type, matrix.rows});
  Doubles expected = product(x.values, weight, count, matrix.rows, matrix.columns);
  check(close(widened(y, x.type), expected, bound_of(x.type)), what);
}

int any_group() {
  return 32 << number(0, 2);
}

void quantised_product() {
  const int all_bits[] = {2, 3, 4, 5, 6, 8};
  int bits = all_bits[number(0, 5)], group = any_group();
  long rows = number(0, 1) ? number(1, 70) : kPanelRows * number(1, 3), count = number(1, 40);
  Quantized weight = quantized(rows, group * number(1, 6), group, bits);
  check_product(weight.matrix(), weight.values, count, "quantised product");
  if (kernels().panel_product == nullptr || !panels_take(bits) || rows % kPanelRows != 0) return;
  weight.lay_out();
  QuantizedMatrix matrix = weight.matrix();
  matrix.in_panels = true;
  check_product(matrix, weight.values, count, "product with panels");
}

void dense_product() {
  long rows = number(1, 70), columns = number(1, 20) == 1 ? number(3000, 7000) : number(1, 300), count = number(1, 40);
  Typed weight = typed(rows * columns);
  check_product(DenseMatrix{weight.bytes.data(), weight.type, rows, columns, columns}, weight.values, count,
                "dense product");
}

void drawing() {
  long rows = number(1, 4), vocabulary = number(1, 1500), words = (vocabulary + 31) / 32;
  Typed logits = typed(rows * vocabulary);
  std::vector<uint32_t> masks(static_cast<size_t>(rows * words));
  for (uint32_t& mask : masks) mask = uint32_t(generator()) & uint32_t(generator());
  bool is_masked = number(0, 1) == 1;
  std::vector<DrawParameters> parameters;
  for (long row = 0; row < rows; row++)
    parameters.push_back({float(number(0, 3)), number(0, 1) ? 1.0f : float(number(0, 10)) / 10.0f,
                          float(number(0, 3)) / 10.0f, float(number(0, 999)) / 1000.0f, int(number(0, 1) * number(1, 2000))});
  std::vector<int32_t> tokens(static_cast<size_t>(rows), -2), places;
  Rows input{logits.bytes.data(), logits.type, rows, vocabulary};
  draw(input, is_masked ? masks.data() : nullptr, parameters.data(), tokens.data());
  for (long row = 0; row < rows; row++) {
    int32_t token = tokens[size_t(row)];
    check(token >= 0 && token < vocabulary, "draw");
    const uint32_t* mask = masks.data() + row * words;
    bool is_left = false;
    for (long i = 0; i < vocabulary; i++) is_left |= (mask[i / 32] >> (i % 32)) & 1;
    if (is_masked && is_left) check((mask[token / 32] >> (token % 32)) & 1, "draw under a mask");
    places.push_back(int32_t(number(-1, rows)));
  }

  std::vector<float> bias = numbers(vocabulary), counts(bias.size()), y(logits.values.size());
  std::vector<char> seen(bias.size());
  for (size_t i = 0; i < counts.size(); i++) seen[i] = char((counts[i] = float(number(0, 2))) > 0.0f || number(0, 1));
  Adjustment adjustment{bias.data(), counts.data(), reinterpret_cast<const bool*>(seen.data()), 1.3f, 0.2f, 0.1f};
  adjust(input, places.data(), &adjustment, 1, y.data());
  std::vector<double> expected;
  for (size_t i = 0; i < y.size(); i++) {
    size_t token = i % bias.size();
    double x = logits.values[i];
    if (places[i / bias.size()] == 0) {
      x += bias[token];
      if (seen[token]) x = x > 0 ? x / 1.3 : x * 1.3;
      x -= (counts[token] > 0.0f ? 0.2 : 0.0) + 0.1 * counts[token];
    }
    expected.push_back(x);
  }
  check(close(y, expected), "adjustment");
}

// Arrays [rows][heads][columns][size] without gaps: where an element is.
size_t place(long heads, long columns, long size, long row, long head, long column) {
  return size_t(((row * heads + head) * columns + column) * size);
}

Heads heads_of(const std::vector<char>& bytes, Type type, long heads, long columns, long size) {
  return {bytes.data(), type, heads * columns * size, columns * size, size};
}

// Attention as `attend` has it: [rows][tokens][heads][size].
template <class Values>
Doubles attended(const AttentionShape& s, const Values& queries, const Values& keys, const Values& values,
                 const std::vector<int>& lengths, double scale, bool causal) {
  Doubles result(size_t(s.rows * s.tokens * s.heads * s.size));
  for (long row = 0; row < s.rows; row++)
    for (long head = 0; head < s.heads; head++)
      for (long token = 0; token < s.tokens; token++) {
        long kv_head = head / (s.heads / s.kv_heads), seen = lengths[size_t(row)] - (causal ? s.tokens - token - 1 : 0);
        double total = 0.0, *out = &result[size_t(((row * s.tokens + token) * s.heads + head) * s.size)];
        for (long column = 0; column < seen; column++) {
          size_t of = place(s.kv_heads, s.capacity, s.size, row, kv_head, column);
          double score = dot(&queries[place(s.heads, s.tokens, s.size, row, head, token)], &keys[of], s.size);
          double weight = std::exp(score * scale);
          total += weight;
          const auto* value = &values[of];
          for (long d = 0; d < s.size; d++) out[d] += weight * double(value[d]);
        }
        for (long d = 0; d < s.size; d++) out[d] /= total;
      }
  return result;
}

AttentionShape any_shape() {
  long kv_heads = number(1, 2), tokens = number(0, 3) ? number(1, 4) : number(5, 20);
  long before = number(0, 3) ? number(0, 60) : number(400, 700);
  return {number(1, 2), kv_heads * number(1, 3), kv_heads, tokens, 16 * number(1, 5), tokens + before};
}

std::vector<int> any_lengths(const AttentionShape& shape, long least, long most) {
  std::vector<int> lengths;
  for (long row = 0; row < shape.rows; row++) lengths.push_back(int(number(least, most)));
  return lengths;
}

void attention() {
  AttentionShape shape = any_shape();
  bool causal = number(0, 1) == 1;
  Typed queries = typed(shape.rows * shape.heads * shape.tokens * shape.size);
  long columns = shape.rows * shape.kv_heads * shape.capacity;
  std::vector<int> lengths = any_lengths(shape, shape.tokens, shape.capacity);
  Heads asking = heads_of(queries.bytes, queries.type, shape.heads, shape.tokens, shape.size);
  std::vector<char> out(queries.bytes.size());
  auto agrees = [&](const std::vector<float>& keys, const std::vector<float>& values, const char* what) {
    Doubles expected = attended(shape, queries.values, keys, values, lengths, 0.1, causal);
    check(close(widened(out, queries.type), expected, bound_of(queries.type)), what);
  };

  Typed keys = typed(columns * shape.size), values = typed(columns * shape.size, keys.type);
  auto slab = [&](const Typed& side) {
    return Slab{heads_of(side.bytes, side.type, shape.kv_heads, shape.capacity, shape.size)};
  };
  attend(shape, asking, slab(keys), slab(values), lengths.data(), 0.1f, causal, out.data());
  agrees(keys.values, values.values, "attention");

  int group = shape.size % 64 == 0 ? 64 : 32, bits = number(0, 1) ? 4 : 8;
  if (shape.size % group != 0) return;
  float size = 1.0f / float(1 << bits);
  Quantized sides[] = {quantized(columns, shape.size, group, bits, size), quantized(columns, shape.size, group, bits, size)};
  attend(shape, asking, sides[0].slab(shape.kv_heads, shape.capacity), sides[1].slab(shape.kv_heads, shape.capacity),
         lengths.data(), 0.1f, causal, out.data());
  agrees(sides[0].values, sides[1].values, "attention to quantised slabs");
}

// Puts columns [rows][kv heads][tokens][size] into a slab, from column lengths[row] on.
template <class Values>
void write(const AttentionShape& s, const Values& added, const std::vector<int>& lengths, Values& slab) {
  for (long row = 0; row < s.rows; row++)
    for (long head = 0; head < s.kv_heads; head++)
      std::copy_n(&added[place(s.kv_heads, s.tokens, s.size, row, head, 0)], s.tokens * s.size,
                  &slab[place(s.kv_heads, s.capacity, s.size, row, head, lengths[size_t(row)])]);
}

// A group as mx.quantize has it: digits, scale, bias.
void quantize_group(const float* x, int group, int bits, uint32_t* digits, float& scale, float& bias) {
  float most_digit = float((1 << bits) - 1), least = x[0], most = x[0];
  for (int i = 1; i < group; i++) {
    least = std::min(least, x[i]);
    most = std::max(most, x[i]);
  }
  bool is_negative = std::abs(least) > std::abs(most);
  float edge = is_negative ? least : most;
  scale = std::max((most - least) / most_digit, 1e-7f) * (is_negative ? 1.0f : -1.0f);
  bias = 0.0f;
  float steps = std::rint(edge / scale);
  if (steps != 0.0f) {
    scale = edge / steps;
    bias = edge;
  }
  for (int i = 0; i < group; i++)
    digits[i] = uint32_t(std::min(std::max(std::rint((x[i] - bias) / scale), 0.0f), most_digit));
}

// Puts columns [rows][kv heads][tokens][size] into a quantised slab, from column lengths[row] on.
void put_quantized(const AttentionShape& s, const std::vector<float>& added, const std::vector<int>& lengths,
                   Quantized& slab) {
  std::vector<float> scales = widened(slab.scales, slab.type), biases = widened(slab.biases, slab.type);
  std::vector<uint32_t> digits(size_t(slab.group));
  for (long row = 0; row < s.rows; row++)
    for (long i = 0; i < s.kv_heads * s.tokens * s.size; i += slab.group) {
      long head = i / (s.tokens * s.size), offset = i % (s.tokens * s.size);
      size_t at = place(s.kv_heads, s.capacity, s.size, row, head, lengths[size_t(row)]) + size_t(offset);
      size_t group = at / size_t(slab.group);
      quantize_group(&added[size_t(row * s.kv_heads * s.tokens * s.size + i)], slab.group, slab.bits, digits.data(),
                     scales[group], biases[group]);
      size_t each = size_t(32 / slab.bits);
      for (size_t d = 0; d < digits.size(); d++) {
        uint32_t &word = slab.words[(at + d) / each], shift = uint32_t((at + d) % each) * uint32_t(slab.bits);
        word = (word & ~(((1u << slab.bits) - 1) << shift)) | digits[d] << shift;
      }
    }
  kernels().narrow(scales.data(), slab.scales.data(), slab.type, long(scales.size()));
  kernels().narrow(biases.data(), slab.biases.data(), slab.type, long(biases.size()));
}

void attention_in_place() {
  AttentionShape shape = any_shape();
  Typed queries = typed(shape.rows * shape.heads * shape.tokens * shape.size);
  Type type = any_type();
  std::vector<int> lengths = any_lengths(shape, 0, shape.capacity - shape.tokens), after = lengths;
  for (int& length : after) length += int(shape.tokens);
  Typed slabs[2], added[2];
  Heads old[2], fresh[2];
  for (int side = 0; side < 2; side++) {
    slabs[side] = typed(shape.rows * shape.kv_heads * shape.capacity * shape.size, type);
    added[side] = typed(shape.rows * shape.kv_heads * shape.tokens * shape.size, type);
    old[side] = heads_of(slabs[side].bytes, type, shape.kv_heads, shape.capacity, shape.size);
    fresh[side] = heads_of(added[side].bytes, type, shape.kv_heads, shape.tokens, shape.size);
    write(shape, added[side].values, lengths, slabs[side].values);
  }
  std::vector<char> out(queries.bytes.size());
  Heads asking = heads_of(queries.bytes, queries.type, shape.heads, shape.tokens, shape.size);
  attend_in_place(shape, asking, fresh[0], fresh[1], {old[0]}, {old[1]}, lengths.data(), 0.1f, out.data());
  auto agrees = [&](const std::vector<float>& keys, const std::vector<float>& values, const char* what) {
    Doubles expected = attended(shape, queries.values, keys, values, after, 0.1, true);
    check(close(widened(out, queries.type), expected, bound_of(queries.type)), what);
  };
  agrees(slabs[0].values, slabs[1].values, "attention in place");
  for (const Typed& slab : slabs) check(widened(slab.bytes, type) == slab.values, "what is written to slabs");

  int group = shape.size % 64 == 0 ? 64 : 32, bits = number(0, 1) ? 4 : 8;
  if (shape.size % group != 0) return;
  long columns = shape.rows * shape.kv_heads * shape.capacity;
  Quantized packed[] = {quantized(columns, shape.size, group, bits, type, 1.0f / float(1 << bits)),
                        quantized(columns, shape.size, group, bits, type, 1.0f / float(1 << bits))};
  Quantized wanted[] = {packed[0], packed[1]};
  for (int side = 0; side < 2; side++) put_quantized(shape, added[side].values, lengths, wanted[side]);
  attend_in_place(shape, asking, fresh[0], fresh[1], packed[0].slab(shape.kv_heads, shape.capacity),
                  packed[1].slab(shape.kv_heads, shape.capacity), lengths.data(), 0.1f, out.data());
  for (int side = 0; side < 2; side++)
    check(packed[side].words == wanted[side].words && packed[side].scales == wanted[side].scales &&
              packed[side].biases == wanted[side].biases,
          "what is written to quantised slabs");
  agrees(wanted[0].widened(), wanted[1].widened(), "attention in place to quantised slabs");
}

Doubles normal_rows(const Doubles& x, const std::vector<float>& weight, bool centred) {
  Doubles y = x;
  size_t columns = weight.size();
  for (size_t first = 0; first < x.size(); first += columns) {
    double mean = 0.0, square = 0.0;
    for (size_t i = 0; i < columns; i++) mean += centred ? x[first + i] / double(columns) : 0.0;
    for (size_t i = 0; i < columns; i++) square += (x[first + i] - mean) * (x[first + i] - mean) / double(columns);
    for (size_t i = 0; i < columns; i++)
      y[first + i] = (x[first + i] - mean) / std::sqrt(square + 1e-3) * double(weight[i]);
  }
  return y;
}

double activated(Activation activation, double x) {
  if (activation == Activation::silu) return x / (1 + std::exp(-x));
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
}

// A head's first elements, turned by so many radians each a position.
void turn(double* head, const std::vector<float>& frequencies, bool traditional, long position) {
  long half = long(frequencies.size());
  for (long i = 0; i < half; i++) {
    double &a = head[traditional ? 2 * i : i], &b = head[traditional ? 2 * i + 1 : half + i];
    double angle = double(position) * double(frequencies[size_t(i)]), x = a, y = b;
    a = x * std::cos(angle) - y * std::sin(angle);
    b = x * std::sin(angle) + y * std::cos(angle);
  }
}

void rows() {
  long count = number(1, 9), columns = number(1, 400), half = number(1, 40);
  Typed x = typed(count * columns), weight = typed(columns);
  Doubles wide(x.values.begin(), x.values.end());
  std::vector<char> y(x.bytes.size());
  auto agrees = [&](const Doubles& expected, const char* what) {
    check(close(widened(y, x.type), expected, bound_of(x.type)), what);
  };
  Rows input{x.bytes.data(), x.type, count, columns};
  rms_norm(input, weight.bytes.data(), weight.type, 1e-3f, y.data(), x.type);
  agrees(normal_rows(wide, weight.values, false), "rms_norm");
  layer_norm(input, weight.bytes.data(), nullptr, weight.type, 1e-3f, y.data(), x.type);
  agrees(normal_rows(wide, weight.values, true), "layer_norm");
  Activation activation = Activation(number(0, 1));
  Typed gates = typed(count * columns, x.type);
  gate(activation, gates.bytes.data(), x.bytes.data(), y.data(), x.type, count * columns);
  Doubles gated = wide;
  for (size_t i = 0; i < gated.size(); i++) gated[i] *= activated(activation, gates.values[i]);
  agrees(gated, "gate");

  std::vector<float> frequencies;
  for (long i = 0; i < half; i++) frequencies.push_back(1.0f / float(number(1, 50)));
  Rotation rotation{1, 1, count, 2 * half + number(0, 9), number(0, 1) == 1, 1.0f, frequencies};
  Typed head = typed(count * rotation.size);
  std::vector<char> turned(head.bytes.size());
  int offset = int(number(0, 4000));
  rotate(rotation, {head.bytes.data(), head.type, 0, 0, rotation.size}, &offset,
         {turned.data(), head.type, 0, 0, rotation.size});
  Doubles expected(head.values.begin(), head.values.end());
  for (long token = 0; token < count; token++)
    turn(&expected[size_t(token * rotation.size)], frequencies, rotation.traditional, offset + token);
  // An angle in float is off by 2^-24 of itself.
  check(close(widened(turned, head.type), expected, std::max(bound_of(head.type), 2e-3)), "rotation");
}

// A linear layer of some kind.
struct Layer {
  Typed dense;
  Quantized packed;
  std::vector<float> bias;
  Projection projection;

  Doubles of(const Doubles& x) const {
    const std::vector<float>& weight = projection.is_quantized ? packed.values : dense.values;
    long rows = projection.rows(), columns = long(weight.size()) / rows, count = long(x.size()) / columns;
    Doubles y = product(x, weight, count, rows, columns);
    for (size_t i = 0; !bias.empty() && i < y.size(); i++) y[i] += double(bias[i % bias.size()]);
    return y;
  }
};

// With 0 bits a dense one.
Layer layer(long rows, long columns, int bits) {
  Layer made{};
  float size = 1.0f / std::sqrt(float(columns));
  if (bits == 0) {
    made.dense = typed(rows * columns, any_type(), size);
    made.projection.dense = {made.dense.bytes.data(), made.dense.type, rows, columns, columns};
  } else {
    made.packed = quantized(rows, columns, 32, bits, size / float(1 << bits));
    bool in_panels = kernels().panel_product != nullptr && panels_take(bits) && rows % kPanelRows == 0 && number(0, 1);
    if (in_panels) made.packed.lay_out();
    made.projection.is_quantized = true;
    made.projection.quantized = made.packed.matrix();
    made.projection.quantized.in_panels = in_panels;
  }
  if (number(0, 1)) made.bias = numbers(rows);
  made.projection.bias = made.bias.empty() ? nullptr : made.bias.data();
  return made;
}

struct Decoder {
  Layer q, k, v, o, gate, up, down;
  Typed norms[2];

  Block block(const BlockShape& shape) const {
    BlockNorm first{norms[0].bytes.data(), norms[0].type, 1e-3f}, second{norms[1].bytes.data(), norms[1].type, 1e-3f};
    return {shape, first, second, q.projection, k.projection, v.projection, o.projection, gate.projection,
            up.projection, down.projection};
  }
};

// [rows][tokens][heads][size] as [rows][heads][tokens][size].
Doubles by_head(const Doubles& x, long rows, long tokens, long heads, long size) {
  Doubles y(x.size());
  for (long row = 0; row < rows; row++)
    for (long token = 0; token < tokens; token++)
      for (long head = 0; head < heads; head++)
        std::copy_n(&x[place(tokens, heads, size, row, token, head)], size,
                    &y[place(heads, tokens, size, row, head, token)]);
  return y;
}

// Rows with slabs of their own, [layers][keys, values]: floats or, if `bits` is not 0, quantised ones, and what should be
// in them.
struct Group {
  AttentionShape shape;
  int bits;
  std::vector<int> lengths;
  std::vector<std::vector<float>> slabs;
  std::vector<Quantized> packed;
  std::vector<Doubles> expected;

  void add_slab() {
    long columns = shape.rows * shape.kv_heads * shape.capacity;
    if (bits == 0) slabs.push_back(numbers(columns * shape.size));
    else packed.push_back(quantized(columns, shape.size, 32, bits, Type::f32, 1.0f / float(1 << bits)));
    const std::vector<float>& values = bits == 0 ? slabs.back() : packed.back().values;
    expected.emplace_back(values.begin(), values.end());
  }
  Slab slab(size_t at) const {
    if (bits != 0) return packed[at].slab(shape.kv_heads, shape.capacity);
    return {{slabs[at].data(), Type::f32, shape.kv_heads * shape.capacity * shape.size, shape.capacity * shape.size,
             shape.size}};
  }
  // What was written to a slab, and is read from it.
  std::vector<float> written(size_t at) const { return bits == 0 ? slabs[at] : packed[at].widened(); }
  // How far that may be from what should be there: half a step, and a whole one at the end of a group that is nearer to 0.
  double bound(size_t at) const {
    if (bits == 0) return 2e-4;
    double most = 0.0, step = 0.0;
    for (double each : expected[at]) most = std::max(most, std::abs(each));
    for (float each : widened(packed[at].scales, Type::f32)) step = std::max(step, std::abs(double(each)));
    return 2e-4 + step / most;
  }
};

// What a layer makes of x [rows][tokens][columns] of a group, in doubles. Its expected slabs get the new columns, are
// compared with those that kernels wrote to, and are these from then on: a rounded number is another one.
Doubles decoded(const Decoder& decoder, const BlockShape& block, Group& group, size_t at, const Doubles& x) {
  AttentionShape& s = group.shape;
  Doubles normal = normal_rows(x, decoder.norms[0].values, false);
  Doubles queries = by_head(decoder.q.of(normal), s.rows, s.tokens, s.heads, s.size);
  Doubles keys = by_head(decoder.k.of(normal), s.rows, s.tokens, s.kv_heads, s.size);
  for (auto [side, heads] : {std::pair{&queries, s.heads}, std::pair{&keys, s.kv_heads}})
    for (long i = 0; i < s.rows * heads * s.tokens; i++)
      turn(&(*side)[size_t(i * s.size)], block.frequencies, block.traditional,
           group.lengths[size_t(i / (heads * s.tokens))] + i % s.tokens);
  write(s, keys, group.lengths, group.expected[at]);
  write(s, by_head(decoder.v.of(normal), s.rows, s.tokens, s.kv_heads, s.size), group.lengths, group.expected[at + 1]);
  for (size_t side : {at, at + 1}) {
    std::vector<float> written = group.written(side);
    check(close(written, group.expected[side], group.bound(side)), "slabs of layers");
    if (group.bits != 0) group.expected[side].assign(written.begin(), written.end());
  }
  std::vector<int> after = group.lengths;
  for (int& length : after) length += int(s.tokens);
  Doubles y = decoder.o.of(attended(s, queries, group.expected[at], group.expected[at + 1], after, 0.1, true));
  for (size_t i = 0; i < y.size(); i++) y[i] += x[i];
  normal = normal_rows(y, decoder.norms[1].values, false);
  Doubles gates = decoder.gate.of(normal), ups = decoder.up.of(normal);
  for (size_t i = 0; i < gates.size(); i++) gates[i] = activated(Activation::silu, gates[i]) * ups[i];
  Doubles down = decoder.down.of(gates);
  for (size_t i = 0; i < y.size(); i++) y[i] += down[i];
  return y;
}

void layers() {
  const int kinds[] = {0, 3, 4, 8};
  int bits = kinds[number(0, 3)];
  long size = 32, kv_heads = number(1, 2), heads = kv_heads * number(1, 2), columns = 32 * number(1, 3);
  long inner = 32 * number(1, 3), tokens = number(0, 3) ? number(1, 3) : number(4, 24);
  BlockShape shape{heads, kv_heads, size, number(0, 1) == 1, 1.0f, {}};
  for (long i = number(1, size / 2); i > 0; i--) shape.frequencies.push_back(1.0f / float(number(1, 50)));
  std::vector<Decoder> decoders;
  for (long depth = number(1, 2); depth > 0; depth--) {
    // Now and then a layer of another kind than its neighbours.
    auto made = [&](long rows, long depth) { return layer(rows, depth, number(0, 9) ? bits : kinds[number(0, 3)]); };
    decoders.push_back({made(heads * size, columns), made(kv_heads * size, columns), made(kv_heads * size, columns),
                        made(columns, heads * size), made(inner, columns), made(inner, columns), made(columns, inner),
                        {typed(columns), typed(columns)}});
  }
  std::vector<Block> blocks;
  std::vector<const Block*> stack;
  for (const Decoder& decoder : decoders) blocks.push_back(decoder.block(shape));
  for (const Block& block : blocks) stack.push_back(&block);

  std::vector<Group> groups(static_cast<size_t>(number(1, 2)));
  std::vector<StackGroup> given;
  std::vector<float> x;
  int slab_bits = number(0, 1) ? 0 : number(0, 1) ? 4 : 8;
  for (Group& group : groups) {
    group.shape = {number(1, 2), heads, kv_heads, tokens, size, tokens + number(0, 60)};
    group.bits = slab_bits;
    group.lengths = any_lengths(group.shape, 0, group.shape.capacity - tokens);
    given.push_back({group.shape.rows, group.shape.capacity, group.lengths.data(), {}, {}});
    for (size_t i = 0; i < 2 * decoders.size(); i++) {
      group.add_slab();
      (i % 2 == 0 ? given.back().keys : given.back().values).push_back(group.slab(i));
    }
    std::vector<float> own = numbers(group.shape.rows * tokens * columns);
    x.insert(x.end(), own.begin(), own.end());
  }
  std::vector<float> out(x.size());
  run_stack(stack, given, x.data(), tokens, 0.1f, out.data());
  Doubles expected;
  auto next = x.begin();
  for (Group& group : groups) {
    auto first = std::exchange(next, next + group.shape.rows * tokens * columns);
    Doubles y(first, next);
    for (size_t i = 0; i < decoders.size(); i++) y = decoded(decoders[i], shape, group, 2 * i, y);
    expected.insert(expected.end(), y.begin(), y.end());
  }
  check(close(out, expected, 2e-4), "layers");
}

// One that throws, in the thread that asked or in another, reaches the one that asked and leaves the pool as it was: two
// chunks that wait for each other still meet.
void a_chunk_that_throws(bool in_caller) {
  std::thread::id caller = std::this_thread::get_id();
  std::atomic<bool> has_thrown{false};
  auto chunk = [&](int) {
    if ((std::this_thread::get_id() == caller) == in_caller) {
      has_thrown = true;
      throw std::bad_alloc();
    }
    while (!has_thrown) std::this_thread::yield();
  };
  bool is_caught = false;
  try {
    parallel(8, chunk);
  } catch (const std::bad_alloc&) {
    is_caught = true;
  }
  check(is_caught, "a chunk that throws");
  std::atomic<int> met{0};
  auto meet = [&](int) {
    met++;
    while (met < 2) std::this_thread::yield();
  };
  parallel(2, meet);
}

}  // namespace

int main(int, char** arguments) {
  int turns = std::atoi(arguments[1]);
  set_threads(3);
  for (bool in_caller : {true, false}) a_chunk_that_throws(in_caller);
  for (const char* name : {"scalar", "avx2", "avx512", "avx512_vnni", "neon"}) {
    if (!use_instructions(name)) continue;
    for (int turn = 0; turn < turns; turn++) {
      quantised_product();
      dense_product();
      attention();
      attention_in_place();
      layers();
      drawing();
      rows();
    }
    std::printf("%s: %d turns\n", name, turns);
  }
  return 0;
}
