#include "draw.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <functional>

#include "pool.hpp"
#include "scratch.hpp"

namespace mlx_serving::cpu {
namespace {

// Candidates are sought among ever smaller weights; that of the most probable token is 1. Nearly always the first few
// hundred are enough. The last lies below all that `weigh` gives but 0.
constexpr float kFloors[] = {0x1p-10f, 0x1p-24f, 0x1p-126f};

// A row's weights of at least some floor, in the order of tokens.
struct Candidates {
  const float* weights;
  const int32_t* tokens;
  long count;
};

// The largest weight such that it and all above it reach `goal`, each counting what `measure` says; -1 if all do not.
// Buckets of bit patterns, which order as positive floats do, find where that is; only one of them is sorted.
template <class Measure>
float reach(const Candidates& candidates, double goal, float* sorted, const Measure& measure) {
  constexpr int kBuckets = 2048;
  static thread_local std::array<double, kBuckets> sums;
  if (candidates.count == 0) return -1.0f;
  auto [least, most] = std::minmax_element(candidates.weights, candidates.weights + candidates.count);
  uint32_t base = std::bit_cast<uint32_t>(*least), range = std::bit_cast<uint32_t>(*most) - base;
  int shift = std::max(0, int(std::bit_width(range)) - 11);
  auto bucket_of = [&](float weight) { return (std::bit_cast<uint32_t>(weight) - base) >> shift; };
  sums.fill(0.0);
  for (long i = 0; i < candidates.count; i++) sums[bucket_of(candidates.weights[i])] += measure(candidates.weights[i]);
  double above = 0.0;
  int bucket = kBuckets - 1;
  auto is_passed = [&](double sum) { return sum == 0.0 || above + sum < goal; };
  while (bucket >= 0 && is_passed(sums[size_t(bucket)])) above += sums[size_t(bucket--)];
  if (bucket < 0) return -1.0f;
  auto in_bucket = [&](float weight) { return bucket_of(weight) == uint32_t(bucket); };
  float* end = std::copy_if(candidates.weights, candidates.weights + candidates.count, sorted, in_bucket);
  std::sort(sorted, end, std::greater<float>());
  for (float* each = sorted; each != end; each++) {
    above += measure(*each);
    if (above >= goal) return *each;
  }
  return end[-1];  // the goal lies between two orders of adding up
}

// The least weight that top-k and then top-p keep, or -1 if that lies below the candidates; of `are_all` candidates
// there is nothing below, and 0 keeps everything. `total` is the weight of the whole row.
float threshold(const Candidates& candidates, bool are_all, double total, const DrawParameters& p, float* scratch) {
  float least = 0.0f;
  if (p.top_k > 0) {
    least = reach(candidates, p.top_k, scratch, [](float) { return 1.0; });
    if (least < 0.0f && !are_all) return -1.0f;
    total = 0.0;
    for (long i = 0; i < candidates.count; i++)
      if (candidates.weights[i] >= least) total += candidates.weights[i];
  }
  if (p.top_p < 1.0f) {
    float reached = reach(candidates, p.top_p * total, scratch, [](float weight) { return double(weight); });
    if (reached < 0.0f && !are_all) return -1.0f;
    least = std::max(least, reached);
  }
  return std::max(least, 0.0f);
}

// Of weights of at least `least`, the first where the running sum passes `uniform` of the whole.
int32_t pick(const Candidates& candidates, float least, float uniform) {
  double total = 0.0, before = 0.0;
  for (long i = 0; i < candidates.count; i++)
    if (candidates.weights[i] >= least) total += candidates.weights[i];
  int32_t token = 0;
  for (long i = 0; i < candidates.count; i++) {
    if (candidates.weights[i] < least) continue;
    token = candidates.tokens[i];
    before += candidates.weights[i];
    if (before > uniform * total) break;
  }
  return token;
}

// The same of all weights that are not 0; `sums` are those of their blocks.
int32_t pick_of_all(const float* weights, const float* sums, long count, double total, float uniform) {
  double target = uniform * total, before = 0.0;
  long token = 0;
  for (long first = 0; first < count; first += kWeighBlock) {
    float block = sums[first / kWeighBlock];
    if (block > 0.0f && before + block > target) {
      double reached = before;
      for (long i = first; i < std::min(count, first + kWeighBlock); i++) {
        if (weights[i] == 0.0f) continue;
        token = i;
        reached += weights[i];
        if (reached > target) break;
      }
      return int32_t(token);
    }
    before += block;
  }
  while (count > 1 && weights[count - 1] == 0.0f) count--;
  return int32_t(count - 1);
}

int32_t draw_row(const float* logits, const uint32_t* mask, long count, const DrawParameters& given) {
  static thread_local Scratch masked_scratch, weight_scratch, found_scratch, place_scratch, sum_scratch, sort_scratch;
  size_t size = size_t(count);
  const Kernels& k = kernels();
  float* masked = mask ? masked_scratch.floats(size) : nullptr;
  Peak peak = k.peak(logits, mask, count, masked);
  if (!peak.is_finite) return -1;
  if (peak.place < 0) return 0;
  if (given.inverse_temperature == 0.0f) return int32_t(peak.place);

  float *weights = weight_scratch.floats(size), *sums = sum_scratch.floats(size / size_t(kWeighBlock) + 1);
  k.weigh(mask ? masked : logits, peak.most, given.inverse_temperature, count, weights, sums);
  double total = 0.0;
  for (long i = 0; i * kWeighBlock < count; i++) total += sums[i];

  DrawParameters p = given;
  if (p.top_k >= count) p.top_k = 0;
  bool is_ordered = p.top_k > 0 || p.top_p < 1.0f;
  if (!is_ordered && p.min_p <= 0.0f) return pick_of_all(weights, sums, count, total, p.uniform);

  float* found = found_scratch.floats(size);
  auto* places = reinterpret_cast<int32_t*>(place_scratch.floats(size));
  if (!is_ordered) return pick({found, places, k.collect(weights, p.min_p, count, found, places)}, p.min_p, p.uniform);
  Candidates candidates{found, places, 0};
  float least = -1.0f;
  for (float floor : kFloors) {
    candidates.count = k.collect(weights, floor, count, found, places);
    bool are_all = floor == kFloors[std::size(kFloors) - 1];
    least = threshold(candidates, are_all, total, p, sort_scratch.floats(size));
    if (least >= 0.0f) break;
  }
  return pick(candidates, std::max(least, p.min_p), p.uniform);
}

const char* row_of(const Rows& rows, long row) {
  return static_cast<const char*>(rows.values) + row * rows.columns * long(size_of(rows.type));
}

const float* floats_of(const Rows& rows, long row, Scratch& scratch) {
  const char* values = row_of(rows, row);
  if (rows.type == Type::f32) return reinterpret_cast<const float*>(values);
  float* wide = scratch.floats(size_t(rows.columns));
  kernels().widen(values, rows.type, wide, rows.columns);
  return wide;
}

}  // namespace

void draw(const Rows& logits, const uint32_t* masks, const DrawParameters* parameters, int32_t* tokens) {
  long words = (logits.columns + 31) / 32;
  auto part = [&](int row) {
    static thread_local Scratch scratch;
    const uint32_t* mask = masks ? masks + row * words : nullptr;
    tokens[row] = draw_row(floats_of(logits, row, scratch), mask, logits.columns, parameters[row]);
  };
  parallel(int(logits.count), part);
}

void adjust(const Rows& logits, const int32_t* places, const Adjustment* adjustments, long count, float* y) {
  auto part = [&](int row) {
    float* target = y + row * logits.columns;
    if (places[row] < 0 || places[row] >= count) return kernels().widen(row_of(logits, row), logits.type, target, logits.columns);
    static thread_local Scratch scratch;
    kernels().adjust(floats_of(logits, row, scratch), adjustments[places[row]], logits.columns, target);
  };
  parallel(int(logits.count), part);
}

}  // namespace mlx_serving::cpu
