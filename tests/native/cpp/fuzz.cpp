// Drives the kernels without MLX or Python, for the sanitizers: random shapes, every instruction set of this machine,
// arrays that end where they end. FAILED and status 1 when a result is off.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "block.hpp"
#include "draw.hpp"
#include "pool.hpp"

using namespace mlx_serving::cpu;

namespace {

std::mt19937 generator(7);

long number(long least, long most) {
  return std::uniform_int_distribution<long>(least, most)(generator);
}

std::vector<float> numbers(long count) {
  std::normal_distribution<float> normal;
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

Typed typed(long count) {
  Typed result{{}, numbers(count), Type(number(0, 2))};
  result.bytes.resize(static_cast<size_t>(count) * size_of(result.type));
  kernels().narrow(result.values.data(), result.bytes.data(), result.type, count);
  kernels().widen(result.bytes.data(), result.type, result.values.data(), count);
  return result;
}

void check(bool holds, const char* what) {
  if (holds) return;
  std::printf("FAILED %s with %s\n", what, kernels().name);
  std::exit(1);
}

bool close(const std::vector<float>& found, const std::vector<double>& expected) {
  double largest = 1e-3, worst = 0.0;
  for (size_t i = 0; i < found.size(); i++) {
    largest = std::max(largest, std::abs(expected[i]));
    worst = std::max(worst, std::abs(double(found[i]) - expected[i]));
  }
  return worst <= 2e-5 * largest;
}

std::vector<double> product(const std::vector<float>& x, const std::vector<float>& weight, long count, long rows,
                            long columns) {
  std::vector<double> y(static_cast<size_t>(count * rows));
  for (long m = 0; m < count; m++)
    for (long n = 0; n < rows; n++)
      for (long k = 0; k < columns; k++)
        y[size_t(m * rows + n)] += double(x[size_t(m * columns + k)]) * double(weight[size_t(n * columns + k)]);
  return y;
}

void quantised_product() {
  const int all_bits[] = {2, 3, 4, 5, 6, 8}, all_groups[] = {32, 64, 128};
  int bits = all_bits[number(0, 5)], group = all_groups[number(0, 2)];
  long rows = number(0, 1) ? number(1, 70) : kPanelRows * number(1, 3), columns = group * number(1, 6);
  long count = number(1, 40);
  std::vector<uint32_t> words(static_cast<size_t>(rows * columns * bits / 32));
  for (uint32_t& word : words) word = uint32_t(generator());
  Typed scales = typed(rows * columns / group), biases{{}, numbers(rows * columns / group), scales.type};
  biases.bytes.resize(scales.bytes.size());
  kernels().narrow(biases.values.data(), biases.bytes.data(), biases.type, long(biases.values.size()));
  kernels().widen(biases.bytes.data(), biases.type, biases.values.data(), long(biases.values.size()));
  std::vector<float> weight(static_cast<size_t>(rows * columns));
  for (long i = 0; i < rows * columns; i++) {
    unsigned digit = 0;
    for (int b = 0; b < bits; b++) {
      long bit = i * bits + b;
      digit |= ((words[size_t(bit / 32)] >> (bit % 32)) & 1u) << b;
    }
    weight[size_t(i)] = float(digit) * scales.values[size_t(i / group)] + biases.values[size_t(i / group)];
  }
  std::vector<float> x = numbers(count * columns), y(static_cast<size_t>(count * rows));
  multiply({words.data(), scales.bytes.data(), biases.bytes.data(), scales.type, rows, columns, group, bits},
           {x.data(), Type::f32, count, columns}, {y.data(), Type::f32, rows});
  std::vector<double> expected = product(x, weight, count, rows, columns);
  check(close(y, expected), "quantised product");

  if (kernels().panel_product == nullptr || (bits != 4 && bits != 8) || rows % kPanelRows != 0) return;
  auto in_panels = [&](const auto* from, long width) {
    auto element = *from;
    std::vector<decltype(element)> to;
    for (long panel = 0; panel < rows; panel += kPanelRows)
      for (long k = 0; k < width; k++)
        for (long row = panel; row < panel + kPanelRows; row++) to.push_back(from[row * width + k]);
    return to;
  };
  auto groups_in_panels = [&](const std::vector<char>& bytes) {
    std::vector<char> to(bytes.size());
    auto put = [&](const auto& panels) { std::memcpy(to.data(), panels.data(), to.size()); };
    if (scales.type == Type::f32) put(in_panels(reinterpret_cast<const uint32_t*>(bytes.data()), columns / group));
    else put(in_panels(reinterpret_cast<const uint16_t*>(bytes.data()), columns / group));
    return to;
  };
  std::vector<uint32_t> panels = in_panels(words.data(), columns * bits / 32);
  std::vector<char> panel_scales = groups_in_panels(scales.bytes), panel_biases = groups_in_panels(biases.bytes);
  QuantizedMatrix matrix{panels.data(), panel_scales.data(), panel_biases.data(), scales.type, rows,
                         columns, group, bits, true};
  multiply(matrix, {x.data(), Type::f32, count, columns}, {y.data(), Type::f32, rows});
  check(close(y, expected), "product with panels");
}

void dense_product() {
  long rows = number(1, 70), columns = number(1, 300), count = number(1, 40);
  Typed weight = typed(rows * columns);
  std::vector<float> x = numbers(count * columns), y(static_cast<size_t>(count * rows));
  multiply(DenseMatrix{weight.bytes.data(), weight.type, rows, columns, columns},
           {x.data(), Type::f32, count, columns}, {y.data(), Type::f32, rows});
  check(close(y, product(x, weight.values, count, rows, columns)), "dense product");
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

void attention() {
  long rows = number(1, 3), kv_heads = number(1, 3), group = number(1, 4), tokens = number(1, 20);
  AttentionShape shape{rows, kv_heads * group, kv_heads, tokens, 16 * number(1, 6), tokens + number(0, 700)};
  Typed queries = typed(rows * shape.heads * tokens * shape.size);
  Typed keys = typed(rows * kv_heads * shape.capacity * shape.size);
  std::vector<char> out(queries.bytes.size());
  std::vector<int> lengths;
  for (long row = 0; row < rows; row++) lengths.push_back(int(number(tokens, shape.capacity)));
  auto heads = [&](const Typed& values, long count, long columns) {
    return Heads{values.bytes.data(), values.type, count * columns * shape.size, columns * shape.size, shape.size};
  };
  Slab slab{heads(keys, kv_heads, shape.capacity)};
  attend(shape, heads(queries, shape.heads, tokens), slab, slab, lengths.data(), 0.1f, number(0, 1) == 1, out.data());
  std::vector<float> wide(queries.values.size());
  kernels().widen(out.data(), queries.type, wide.data(), long(wide.size()));
  for (float value : wide) check(std::isfinite(value), "attention");
}

void rows() {
  long count = number(1, 9), columns = number(1, 400), half = number(1, 40);
  Typed x = typed(count * columns), weight = typed(columns);
  std::vector<char> y(x.bytes.size());
  Rows input{x.bytes.data(), x.type, count, columns};
  rms_norm(input, weight.bytes.data(), weight.type, 1e-5f, y.data(), x.type);
  layer_norm(input, weight.bytes.data(), nullptr, weight.type, 1e-5f, y.data(), x.type);
  gate(Activation(number(0, 1)), x.bytes.data(), x.bytes.data(), y.data(), x.type, count * columns);
  Rotation rotation{1, 1, count, 2 * half + number(0, 9), number(0, 1) == 1, 1.0f, numbers(half)};
  Typed head = typed(count * rotation.size);
  std::vector<char> turned(head.bytes.size());
  int offset = int(number(0, 5000));
  rotate(rotation, {head.bytes.data(), head.type, 0, 0, rotation.size}, &offset,
         {turned.data(), head.type, 0, 0, rotation.size});
}

}  // namespace

int main(int, char** arguments) {
  int turns = std::atoi(arguments[1]);
  set_threads(3);
  for (const char* name : {"scalar", "avx2", "avx512", "avx512_vnni", "neon"}) {
    if (!use_instructions(name)) continue;
    for (int turn = 0; turn < turns; turn++) {
      quantised_product();
      dense_product();
      attention();
      drawing();
      rows();
    }
    std::printf("%s: %d turns\n", name, turns);
  }
  return 0;
}
