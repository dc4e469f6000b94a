#include "draw.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>

#include "pool.hpp"
#include "scratch.hpp"

namespace mlx_serving::cpu {
namespace {

// Candidates are sought among ever smaller weights, whose logarithms these are; that of the most probable token is 0.
// Nearly always the first few hundred tokens are enough, and looking again costs little beside what is done with many.
// The last is where weights end.
constexpr float kFaintest = -87.0f;
constexpr float kFloors[] = {-7.0f, -9.0f, -11.5f, -15.0f, -20.0f, kFaintest};

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
  constexpr int kBucketBits = 9, kBuckets = 1 << kBucketBits;
  static thread_local std::array<double, kBuckets> sums;
  double all = 0.0;
  for (long i = 0; i < candidates.count; i++) all += measure(candidates.weights[i]);
  if (candidates.count == 0 || all < goal) return -1.0f;
  // Of integers the compiler takes several at once.
  int32_t lowest = INT32_MAX, highest = 0;
  for (long i = 0; i < candidates.count; i++) {
    int32_t bits = std::bit_cast<int32_t>(candidates.weights[i]);
    lowest = std::min(lowest, bits);
    highest = std::max(highest, bits);
  }
  uint32_t base = uint32_t(lowest), range = uint32_t(highest) - base;
  int shift = std::max(0, int(std::bit_width(range)) - kBucketBits);
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

// The sum of the weights of at least `least`: without a branch, which would be guessed wrong for many of them.
double sum_of(const Candidates& candidates, float least) {
  double total = 0.0;
  for (long i = 0; i < candidates.count; i++) total += candidates.weights[i] >= least ? candidates.weights[i] : 0.0f;
  return total;
}

// The least weight that top-k and then top-p keep, or -1 if that lies below the candidates; of `are_all` candidates
// there is nothing below, and 0 keeps everything. `total` is the weight of the whole row.
float threshold(const Candidates& candidates, bool are_all, double total, const DrawParameters& p, float* scratch) {
  float least = 0.0f;
  if (p.top_k > 0) {
    least = reach(candidates, p.top_k, scratch, [](float) { return 1.0; });
    if (least < 0.0f && !are_all) return -1.0f;
    total = sum_of(candidates, least);
  }
  if (p.top_p < 1.0f) {
    float reached = reach(candidates, p.top_p * total, scratch, [](float weight) { return double(weight); });
    if (reached < 0.0f && !are_all) return -1.0f;
    least = std::max(least, reached);
  }
  return std::max(least, 0.0f);
}

// Of weights of at least `least`, the first where the running sum passes `uniform` of the whole; 0 if there are none.
int32_t pick(const Candidates& candidates, float least, float uniform) {
  double target = uniform * sum_of(candidates, least), before = 0.0;
  for (long i = 0; i < candidates.count; i++) {
    before += candidates.weights[i] >= least ? candidates.weights[i] : 0.0f;
    if (before > target) return candidates.tokens[i];
  }
  return 0;
}

// The sum of all weights; `sums` gets those of their blocks.
double weigh_all(const float* logits, float most, float factor, long count, float* sums) {
  kernels().weigh(logits, most, factor, count, nullptr, sums);
  double total = 0.0;
  for (long i = 0; i * kWeighBlock < count; i++) total += sums[i];
  return total;
}

// Of all tokens, the first where the running sum passes `uniform` of the whole. Only its block's weights are written.
int32_t pick_of_all(const float* logits, float most, float factor, long count, float* sums, float uniform) {
  double target = uniform * weigh_all(logits, most, factor, count, sums), before = 0.0;
  long last = (count - 1) / kWeighBlock, block = 0;
  for (; block < last && before + sums[block] <= target; block++) before += sums[block];
  float weights[kWeighBlock], sum;
  long first = block * kWeighBlock, some = std::min(count - first, kWeighBlock), token = 0;
  kernels().weigh(logits + first, most, factor, some, weights, &sum);
  for (long i = 0; i < some; i++) {
    if (weights[i] == 0.0f) continue;
    token = i;
    before += weights[i];
    if (before > target) break;
  }
  return int32_t(first + token);
}

int32_t draw_row(const float* logits, const uint32_t* mask, long count, const DrawParameters& given) {
  static thread_local Scratch masked_scratch, found_scratch, place_scratch, sum_scratch, sort_scratch;
  size_t size = size_t(count);
  const Kernels& k = kernels();
  float* masked = mask ? masked_scratch.floats(size) : nullptr;
  Peak peak = k.peak(logits, mask, count, masked);
  if (!peak.is_finite) return -1;
  if (peak.place < 0) return 0;
  if (given.inverse_temperature == 0.0f) return int32_t(peak.place);

  if (mask) logits = masked;
  DrawParameters p = given;
  if (p.top_k >= count) p.top_k = 0;
  float* sums = sum_scratch.floats(size / size_t(kWeighBlock) + 1);
  bool is_ordered = p.top_k > 0 || p.top_p < 1.0f;
  if (!is_ordered && p.min_p <= 0.0f)
    return pick_of_all(logits, peak.most, p.inverse_temperature, count, sums, p.uniform);

  float* found = found_scratch.floats(size + kVectorRoom);
  auto* places = reinterpret_cast<int32_t*>(place_scratch.floats(size + kVectorRoom));
  auto collect = [&](float floor) -> Candidates {
    return {found, places, k.collect(logits, peak.most, p.inverse_temperature, floor, count, found, places)};
  };
  // A little lower than where exponentials are large enough, as these and the logarithm are rounded.
  if (!is_ordered) return pick(collect(std::max(std::log(p.min_p) - 1e-4f, kFaintest)), p.min_p, p.uniform);
  // The whole row's weight matters only where nothing else bounds what top-p is a part of.
  double total = p.top_k > 0 ? 0.0 : weigh_all(logits, peak.most, p.inverse_temperature, count, sums);
  Candidates candidates{found, places, 0};
  float least = -1.0f;
  for (float floor : kFloors) {
    candidates = collect(floor);
    least = threshold(candidates, floor == kFaintest, total, p, sort_scratch.floats(size));
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
