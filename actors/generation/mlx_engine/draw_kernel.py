"""One kernel that draws the next token of every row: from one source for CUDA and Metal, and a native one for the CPU.

They compute what `sampling.Draw` computes by MLX's own operations, without sorting the vocabulary, and take sums in a
fixed order, so a row draws the same whatever is beside it. On a GPU a group of threads takes one row: the thresholds of
top-k and top-p are found by a search over the bit patterns of the weights, which order as the weights do, with seven
probes a pass. Where some rows have a bias or penalties, the same kernel adjusts their logits as it first reads them,
and counts what was drawn, in place.

The CPU's (native/src/cpu/draw.cpp) takes a row with one thread. CUDA has run its own. Metal has not: there it is used
only where `generation.sampler_kernel` is `on`, and only after it has drawn what a few rows leave no choice about.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import attrs
import mlx.core as mx

from mlx_serving.actors.generation.mlx_engine.device import is_cpu
from mlx_serving.actors.generation.mlx_engine.kernel_dialects import dialect
from mlx_serving.native import kernels

_FUNCTIONS = r"""
// The sum over all threads, known to each. `parts` has a place for every warp and one more.
FUNCTION float group_sum(float x, SHARED_POINTER(float) parts, int lane, int warp, int warps) {
    for (int step = 16; step > 0; step /= 2) x += LANE_XOR(x, step);
    BARRIER();
    if (lane == 0) parts[warp] = x;
    BARRIER();
    float all = 0.0f;
    for (int w = 0; w < warps; ++w) all += parts[w];
    return all;
}

// What `penalties` does to a logit; `factors` are repetition, presence and frequency.
FUNCTION float penalised(float logit, float count, bool is_seen, const DEVICE float* factors) {
    if (is_seen) logit = logit > 0.0f ? logit / factors[0] : logit * factors[0];
    return logit - (count > 0.0f ? factors[1] : 0.0f) - factors[2] * count;
}

FUNCTION float weight_of(float logit, float most, float inverse_temperature) {
    return EXP((logit - most) * inverse_temperature);
}
"""

_PLAIN = r"""
    #define LOGIT(i) float(logits[base + (i)])
    #define FIRST_LOGIT(i) LOGIT(i)
    #define SAY(token) tokens[row] = token
"""
_ADJUSTED = r"""
    // What a row of `factors` says besides: whether it has penalties, and whether it has a bias.
    const DEVICE float* its_factors = factors + GROUP.x * 8;
    const bool is_penal = its_factors[3] != 0.0f, is_biased = its_factors[4] != 0.0f;
    #define LOGIT(i) (is_penal || is_biased ? adjusted[base + (i)] : float(logits[base + (i)]))
    #define FIRST_LOGIT(i) float(logits[base + (i)]); \
        if (is_biased) logit += bias[base + (i)]; \
        if (is_penal) logit = penalised(logit, counts[base + (i)], seen[base + (i)], its_factors); \
        if (is_penal || is_biased) adjusted[base + (i)] = logit
    #define SAY(token) \
        const int said = token; \
        tokens[row] = said; \
        if (is_penal && said >= 0) { \
            ((DEVICE float*)counts)[base + said] += 1.0f; \
            ((DEVICE bool*)seen)[base + said] = true; \
        }
"""
_SOURCE = r"""
    constexpr int WARPS = COUNT / 32, PROBES = 7;
    SHARED float parts[WARPS * PROBES];
    SHARED float measured[PROBES];
    SHARED float best_values[WARPS];
    SHARED int best_ids[WARPS];
    SHARED int odd_parts[WARPS];

    const int row = int(GROUP.x), lane = THREAD % 32, warp = THREAD / 32;
    const size_t base = size_t(row) * V;
    const size_t mask_base = size_t(row) * ((V + 31) / 32);
    const float inverse_temperature = floats[row * 4], top_p = floats[row * 4 + 1];
    const float min_p = floats[row * 4 + 2], uniform = floats[row * 4 + 3];
    const int top_k = limits[row];

    #define IS_ALLOWED(i) (!MASKED || ((masks[mask_base + ((i) >> 5)] >> ((i) & 31)) & 1))

    float most = -INFINITY, raw_most = -INFINITY;
    int best = V, odd = 0;
    for (int i = THREAD; i < V; i += COUNT) {
        float logit = FIRST_LOGIT(i);
        odd |= !(logit < INFINITY);
        raw_most = logit > raw_most ? logit : raw_most;
        if (logit > most && IS_ALLOWED(i)) { most = logit; best = i; }
    }
    odd |= (raw_most == -INFINITY) << 1;
    for (int step = 16; step > 0; step /= 2) {
        const float other = LANE_XOR(most, step);
        const int other_id = LANE_XOR(best, step), other_odd = LANE_XOR(odd, step);
        if (other > most || (other == most && other_id < best)) { most = other; best = other_id; }
        // NaN or +inf anywhere; -inf everywhere.
        odd = ((odd | other_odd) & 1) | (odd & other_odd & 2);
    }
    if (lane == 0) { best_values[warp] = most; best_ids[warp] = best; odd_parts[warp] = odd; }
    DEVICE_BARRIER();
    odd = 2;
    for (int w = 0; w < WARPS; ++w) {
        if (best_values[w] > most || (best_values[w] == most && best_ids[w] < best)) {
            most = best_values[w];
            best = best_ids[w];
        }
        odd = ((odd | odd_parts[w]) & 1) | (odd & odd_parts[w] & 2);
    }
    if (odd || best == V || inverse_temperature == 0.0f) {
        if (THREAD == 0) { SAY(odd ? -1 : best == V ? 0 : best); }
        return;
    }

    WORD floor_bits = 0;
    for (int filter = 0; filter < 2; ++filter) {
        const bool by_count = filter == 0;
        if (by_count ? top_k <= 0 || top_k >= V : top_p >= 1.0f) continue;
        float goal = float(top_k);
        if (!by_count) {
            float mass = 0.0f;
            const float floor_now = FLOAT_OF(floor_bits);
            for (int i = THREAD; i < V; i += COUNT) {
                const float weight = weight_of(LOGIT(i), most, inverse_temperature);
                if (weight >= floor_now && IS_ALLOWED(i)) mass += weight;
            }
            goal = top_p * group_sum(mass, parts, lane, warp, WARPS);
        }
        // The largest weight such that it and all above it still reach the goal.
        WORD low = floor_bits, high = BITS_OF(1.0f) + 1;
        while (high - low > 1) {
            const WORD stride = (high - low) / (PROBES + 1) > 0 ? (high - low) / (PROBES + 1) : 1;
            float sums[PROBES];
            for (int j = 0; j < PROBES; ++j) sums[j] = 0.0f;
            for (int i = THREAD; i < V; i += COUNT) {
                const float weight = weight_of(LOGIT(i), most, inverse_temperature);
                if (weight < FLOAT_OF(low + stride) || !IS_ALLOWED(i)) continue;
                for (int j = 0; j < PROBES; ++j) {
                    if (weight >= FLOAT_OF(low + (j + 1) * stride)) sums[j] += by_count ? 1.0f : weight;
                }
            }
            for (int j = 0; j < PROBES; ++j) {
                for (int step = 16; step > 0; step /= 2) sums[j] += LANE_XOR(sums[j], step);
            }
            BARRIER();
            if (lane == 0) {
                for (int j = 0; j < PROBES; ++j) parts[j * WARPS + warp] = sums[j];
            }
            BARRIER();
            if (THREAD < PROBES) {
                float all = 0.0f;
                for (int w = 0; w < WARPS; ++w) all += parts[THREAD * WARPS + w];
                measured[THREAD] = all;
            }
            BARRIER();
            WORD next_low = low, next_high = high;
            for (int j = 0; j < PROBES; ++j) {
                const WORD probe = low + (j + 1) * stride;
                if (probe >= high) break;
                if (measured[j] >= goal) { next_low = probe; } else { next_high = probe; break; }
            }
            low = next_low;
            high = next_high;
        }
        floor_bits = low;
    }
    const float found = FLOAT_OF(floor_bits);
    const float least = found > min_p ? found : min_p;

    // Each warp sums a run of ids; the one that the drawn number falls into is searched id by id.
    const int run = ((V + WARPS - 1) / WARPS + 31) / 32 * 32;
    const int begin = warp * run, end = begin + run < V ? begin + run : V;
    float mass = 0.0f;
    for (int i = begin + lane; i < end; i += 32) {
        const float weight = weight_of(LOGIT(i), most, inverse_temperature);
        if (weight >= least && weight > 0.0f && IS_ALLOWED(i)) mass += weight;
    }
    const float total = group_sum(mass, parts, lane, warp, WARPS);
    const float target = uniform * total;
    float before = 0.0f, chosen_before = 0.0f;
    int chosen = 0;
    for (int w = 0; w < WARPS; ++w) {
        if (parts[w] > 0.0f) {
            chosen = w;
            chosen_before = before;
            if (before + parts[w] > target) break;
        }
        before += parts[w];
    }
    if (warp != chosen) return;
    before = chosen_before;
    int drawn = V, latest = 0;
    for (int first = begin; first < end && drawn == V; first += 32) {
        const int i = first + lane;
        float weight = 0.0f;
        if (i < end && IS_ALLOWED(i)) {
            weight = weight_of(LOGIT(i), most, inverse_temperature);
            if (weight < least) weight = 0.0f;
        }
        float reached = weight;
        for (int step = 1; step < 32; step *= 2) {
            const float other = LANE_UP(reached, step);
            if (lane >= step) reached += other;
        }
        drawn = weight > 0.0f && before + reached > target ? i : V;
        int last = weight > 0.0f ? i : 0;
        for (int step = 16; step > 0; step /= 2) {
            const int other = LANE_XOR(drawn, step), other_last = LANE_XOR(last, step);
            drawn = other < drawn ? other : drawn;
            last = other_last > last ? other_last : last;
        }
        latest = last > latest ? last : latest;
        before += LANE_READ(reached, 31);
    }
    if (lane == 0) { SAY(drawn < V ? drawn : latest); }
"""


FACTORS = 8
"""Numbers of a row, of which the last ones are not used: Metal would have fewer in another address space."""


@attrs.frozen(eq=False)
class Adjusting:
    """Of each row its dense `bias`, `counts` (float32) and what it has `seen` (bool), [rows, vocabulary], and `factors`
    [rows, FACTORS]: the repetition, presence and frequency penalties, whether it has any, and whether it has a bias.

    What no row has is None. Counts of rows with penalties, and what they have seen, are written in place.
    """

    factors: mx.array
    bias: mx.array | None
    counts: mx.array | None
    seen: mx.array | None


@functools.cache
def _kernel(adjusts: bool = False) -> tuple[Any, int]:
    """The kernel, and the threads of a group."""
    here = dialect()
    names = ["logits", "masks", "floats", "limits"]
    if adjusts:
        names += ["factors", "bias", "counts", "seen"]
        source, outputs, name = _ADJUSTED + _SOURCE, ["tokens", "adjusted"], "draw_adjusted_tokens"
    else:
        source, outputs, name = _PLAIN + _SOURCE, ["tokens"], "draw_tokens"
    return here.kernel(name, names, outputs, source, _FUNCTIONS), here.threads


@functools.cache
def _nothing(dtype: mx.Dtype) -> mx.array:
    """Stands for an array that a kernel does not read. Metal would have smaller ones in another address space."""
    nothing = mx.zeros((1, 8), dtype=dtype)
    mx.eval(nothing)
    return nothing


Way = Literal["operations", "gpu", "cpu"]

_way: Way = "operations"


def choose(setting: str) -> None:
    """Whether this process draws by a kernel: `on`, `off`, or `auto`, which is on but for Metal."""
    global _way
    _way = "operations"
    if setting == "off":
        return
    if is_cpu():
        _way = "cpu" if kernels.choice.choice == "native" else "operations"
    elif mx.cuda.is_available() or (setting == "on" and mx.metal.is_available() and _draws_right()):
        _way = "gpu"


def way() -> Way:
    """By MLX's operations, or by the kernel of this device."""
    return _way


def _draws_right() -> bool:
    """Whether this device compiles the kernel and draws 64 equally probable tokens as they should be."""
    count = 64
    wanted = [(7 * place) % count for place in range(count)]
    # Greedy; the two ids that a mask leaves; plain draws.
    floats = [[0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.75], *([1.0, 1.0, 0.0, (each + 0.5) / count] for each in wanted)]
    logits = mx.zeros((len(floats), count))
    logits[0, 41] = 1.0
    masks = mx.full((len(floats), count // 32), 0xFFFFFFFF, dtype=mx.uint32)
    masks[1] = mx.array([1 << 5, 1 << 1], dtype=mx.uint32)
    try:
        tokens = draw(logits, masks, mx.array(floats), mx.zeros(len(floats), dtype=mx.int32)).tolist()
        return bool(tokens == [41, 33, *wanted]) and _adjusts_right(count)
    except Exception:  # a compiler or driver that does not take the kernel
        return False


def _adjusts_right(count: int) -> bool:
    """Whether a bias decides between `count` tokens, and the one that is drawn is counted."""
    likeliest, favoured = 41, 7
    logits, bias = mx.zeros((1, count)), mx.zeros((1, count))
    logits[0, likeliest], bias[0, favoured] = 1.0, 3.0
    counts, seen = mx.zeros((1, count)), mx.zeros((1, count), dtype=mx.bool_)
    factors = mx.array([[1.0, 0.0, 0.0, 1.0, 1.0, *[0.0] * (FACTORS - 5)]])
    mx.eval(logits, bias, counts, seen, factors)
    adjusting = Adjusting(factors, bias, counts, seen)
    token = draw(logits, None, mx.array([[0.0, 1.0, 0.0, 0.0]]), mx.zeros(1, dtype=mx.int32), adjusting)
    known = [counts[0, favoured].item(), counts.sum().item(), seen[0, favoured].item(), seen.sum().item()]
    return bool(token.tolist() == [favoured] and known == [1, 1, True, 1])


def draw(
    logits: mx.array, masks: mx.array | None, floats: mx.array, limits: mx.array, adjusting: Adjusting | None = None
) -> mx.array:
    """Token ids [rows] int32 from logits [rows, vocabulary]: -1 where these are not finite, 0 where all are masked out.

    `masks` [rows, ceil(vocabulary / 32)] uint32 has a bit for each token that may be drawn. `floats` [rows, 4] are
    1 / temperature (0: greedy), top-p, min-p and the uniform number in [0, 1); `limits` [rows] int32
    is top-k (0: none). `adjusting` is for GPUs alone.
    """
    if masks is not None:  # a tokenizer may have more ids than there are logits
        masks = masks[:, : (logits.shape[1] + 31) // 32]
    if _way == "cpu":
        return kernels.operations.draw(logits, masks, floats, limits)  # type: ignore[no-any-return]
    rows, vocab_size = logits.shape
    kernel, threads = _kernel(adjusting is not None)
    inputs = [logits, _nothing(mx.uint32) if masks is None else masks, floats, limits]
    shapes: list[tuple[int, ...]] = [(rows,)]
    dtypes = [mx.int32]
    if adjusting is not None:
        whole = [(adjusting.bias, mx.float32), (adjusting.counts, mx.float32), (adjusting.seen, mx.bool_)]
        inputs += [adjusting.factors, *(_nothing(dtype) if each is None else each for each, dtype in whole)]
        shapes.append(logits.shape)
        dtypes.append(mx.float32)
    tokens: mx.array = kernel(
        inputs=inputs,
        template=[("T", logits.dtype), ("V", vocab_size), ("COUNT", threads), ("MASKED", masks is not None)],
        grid=(rows * threads, 1, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=shapes,
        output_dtypes=dtypes,
    )[0]
    return tokens
