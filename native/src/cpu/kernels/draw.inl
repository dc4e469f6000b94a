// Steps of drawing a token from a row of logits; see draw.cpp.

Peak peak(const float* logits, const uint32_t* mask, long count, float* masked) {
  const float none = -INFINITY, largest_finite = 3.402823466e+38f;
  constexpr long kSpan = 512;
  constexpr uint32_t kAll = uint32_t((uint64_t(1) << W) - 1);
  float most = none;
  long block = 0;
  uint32_t odd = 0, some = 0;
  auto is_allowed = [&](long i) { return mask == nullptr || ((mask[i >> 5] >> (i & 31)) & 1u); };
  long whole = count / W * W;
  for (long first = 0; first < count; first += kSpan) {
    long end = first + kSpan < count ? first + kSpan : count, vectors = end < whole ? end : whole;
    V top = set1(none);
    for (long i = first; i < vectors; i += W) {
      V x = load(logits + i);
      odd |= ~at_least(set1(largest_finite), x) & kAll;
      some |= at_least(x, set1(-largest_finite));
      if (mask) {
        x = select(mask[i >> 5] >> (i & 31), x, set1(none));
        store(masked + i, x);
      }
      top = max(top, x);
    }
    float lanes[W], here = none;
    store(lanes, top);
    for (int l = 0; l < W; l++) here = lanes[l] > here ? lanes[l] : here;
    for (long i = vectors; i < end; i++) {
      odd |= !(logits[i] <= largest_finite);
      some |= logits[i] >= -largest_finite;
      float x = is_allowed(i) ? logits[i] : none;
      if (mask) masked[i] = x;
      here = x > here ? x : here;
    }
    if (here > most) {
      most = here;
      block = first;
    }
  }
  Peak found{most, -1, odd == 0 && some != 0};
  if (!found.is_finite || most == none) return found;
  found.place = block;
  while (logits[found.place] != most || !is_allowed(found.place)) found.place++;
  return found;
}

void weigh(const float* logits, float most, float factor, long count, float* weights, float* sums) {
  const float faintest = -87.0f;
  for (long first = 0; first < count; first += kWeighBlock) {
    long end = first + kWeighBlock < count ? first + kWeighBlock : count, i = first;
    V total = zero();
    for (; i + W <= end; i += W) {
      V x = mul(sub(load(logits + i), set1(most)), set1(factor));
      V weight = select(at_least(x, set1(faintest)), exp(x), zero());
      if (weights) store(weights + i, weight);
      total = add(total, weight);
    }
    float rest = 0.0f;
    for (; i < end; i++) {
      float x = (logits[i] - most) * factor, weight = x >= faintest ? std::exp(x) : 0.0f;
      if (weights) weights[i] = weight;
      rest += weight;
    }
    sums[first / kWeighBlock] = sum(total) + rest;
  }
}

long collect(const float* logits, float most, float factor, float least, long count, float* found, int32_t* places) {
  // Several vectors a branch: where a few lanes in a hundred are wanted, one for each vector is guessed wrong too often.
  constexpr int kVectors = 4;
  long some = 0, i = 0;
  auto exponents = [&](long place) { return mul(sub(load(logits + place), set1(most)), set1(factor)); };
  for (; i + kVectors * W <= count; i += kVectors * W) {
    V x[kVectors];
    uint32_t bits[kVectors], any = 0;
    for (int j = 0; j < kVectors; j++) {
      x[j] = exponents(i + j * W);
      any |= bits[j] = at_least(x[j], set1(least));
    }
    if (any == 0) continue;
    for (int j = 0; j < kVectors; j++) some += pack(bits[j], x[j], i + j * W, found + some, places + some);
  }
  for (; i < count; i++) {
    float x = (logits[i] - most) * factor;
    if (!(x >= least)) continue;
    found[some] = x;
    places[some++] = int32_t(i);
  }
  for (i = 0; i + W <= some; i += W) store(found + i, exp(load(found + i)));
  if (i == some) return some;
  float rest[W] = {};
  for (long j = i; j < some; j++) rest[j - i] = found[j];
  store(rest, exp(load(rest)));
  for (long j = i; j < some; j++) found[j] = rest[j - i];
  return some;
}

void adjust(const float* logits, const Adjustment& a, long count, float* y) {
  long i = 0;
  for (; i + W <= count; i += W) {
    V x = load(logits + i);
    if (a.bias) x = add(x, load(a.bias + i));
    if (a.counts) {
      V seen = load_bytes(reinterpret_cast<const uint8_t*>(a.seen + i)), said = load(a.counts + i);
      V repeated = select(at_least(x, zero()), div(x, set1(a.repetition)), mul(x, set1(a.repetition)));
      x = select(at_least(seen, set1(1.0f)), repeated, x);
      x = sub(x, select(at_least(said, set1(1.0f)), set1(a.presence), zero()));
      x = sub(x, mul(set1(a.frequency), said));
    }
    store(y + i, x);
  }
  for (; i < count; i++) {
    float x = logits[i] + (a.bias ? a.bias[i] : 0.0f);
    if (a.counts) {
      if (a.seen[i]) x = x >= 0.0f ? x / a.repetition : x * a.repetition;
      x = x - (a.counts[i] >= 1.0f ? a.presence : 0.0f) - a.frequency * a.counts[i];
    }
    y[i] = x;
  }
}
