"""Attention of one or a few new tokens a row over its slab, which is written in place: a kernel for CUDA and Metal.

Slabs hold keys and values as they are, or in 8 or 4 bits: then the new ones are quantised before, and every thread
widens what it reads.

MLX's own operations cannot write where a step in flight still reads, so they copy the slab; this kernel writes the
new keys and values to the row's own next columns and reads the columns before them, and takes the new ones from its
inputs. Nobody else reads those columns before the next step, whose tokens depend on this step's output.

Keys are split over blocks, each with a running softmax (Milakov and Gimelshein, 2018), and a second kernel joins the
parts (Dao et al., "Flash-Decoding", 2023). A row reads its own length, whatever the longest one is. Each token of a row
has blocks of its own: for the few of a check there is nothing to gain from sharing what they read.

MLX does not know of the write, as the slab is an input. On CUDA, where evaluations run in order, a copy of the slab
only has to be an evaluation of its own, started before the next step. On Metal they overlap, and MLX waits for the
outputs of an earlier one alone: a step is ordered after the one before it, whose tokens it needs, but a copy of the
slab is not. There `settle` goes before it. A copy that is started needs no such wait before the next step, which
writes behind the columns that are copied, and MLX keeps its own hands off a buffer that is being read.

CUDA has run it. Metal has not: there it is used only where `generation.in_place_attention` is `on`, and only after
the model has given the same logits with it as without.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from mlx_serving.actors.generation.mlx_engine.kernel_dialects import dialect
from mlx_serving.actors.generation.mlx_engine.kv_format import Slab

_PART_COLUMNS, _MOST_PARTS = 512, 32
"""What one block takes in so little time that more of them, and joining their parts, would take longer; and how many
of them occupy the largest devices with one row. The number hangs on the capacity alone, so that a row's result is the
same whatever is beside it."""
_LARGEST_HEADS_PER_KEY = 16
MOST_TOKENS = 16
"""A row's in one pass: what speculation checks; more is prefill's."""

_PLAIN = r"""
    struct alignas(WIDTH * sizeof(T)) Piece { T at[WIDTH]; };
    #define SIDE(name, first) (name + size_t(first) * D + lane * WIDTH)
    #define PIECE_OF(side, place) (*(const DEVICE Piece*)((side) + size_t(place) * D))
    #define NUMBER(piece, i) float((piece).at[i])
    #define KEEP(side, place, piece) *(DEVICE Piece*)((DEVICE T*)(side) + size_t(place) * D) = piece
"""
"""What a thread has of a key or value: where that is, how it is read, as numbers, and how it is written."""

_QUANTISED = r"""
    // MLX's affine form: digits from the lowest bits on, and for each group of them a scale and what 0 stands for.
    constexpr int BYTES = WIDTH * BITS / 8, ROW_BYTES = D * BITS / 8, SCALES = D / GROUP_SIZE;
    struct alignas(BYTES) Digits { unsigned char at[BYTES]; };
    struct Piece { Digits digits; T scale, offset; };
    struct Side { const DEVICE unsigned char* digits; const DEVICE T* scales; const DEVICE T* offsets; };
    const int its_scale = lane * WIDTH / GROUP_SIZE;
    #define SIDE(name, first) \
        (Side{(const DEVICE unsigned char*)name + size_t(first) * ROW_BYTES + lane * BYTES, \
              name##_scales + size_t(first) * SCALES + its_scale, name##_offsets + size_t(first) * SCALES + its_scale})
    #define PIECE_OF(side, place) \
        (Piece{*(const DEVICE Digits*)((side).digits + size_t(place) * ROW_BYTES), \
               (side).scales[size_t(place) * SCALES], (side).offsets[size_t(place) * SCALES]})
    #define DIGIT(piece, i) ((piece).digits.at[(i) * BITS / 8] >> (i) * BITS % 8 & ((1 << BITS) - 1))
    #define NUMBER(piece, i) (float(DIGIT(piece, i)) * float((piece).scale) + float((piece).offset))
    #define KEEP(side, place, piece) \
        *(DEVICE Digits*)((DEVICE unsigned char*)(side).digits + size_t(place) * ROW_BYTES) = (piece).digits; \
        ((DEVICE T*)(side).scales)[size_t(place) * SCALES] = (piece).scale; \
        ((DEVICE T*)(side).offsets)[size_t(place) * SCALES] = (piece).offset
"""

_BEGINNING = r"""
    // Known only now, so that no other number of them has to be compiled for.
    const int tokens = queries_shape[2], parts = GROUPS.x;
    const int part = GROUP.x, kv_head = GROUP.y, row = int(GROUP.z) / tokens, token = int(GROUP.z) % tokens;
    const int kv_heads = GROUPS.y, lane = THREAD % 32, warp = THREAD / 32;
    constexpr int WIDTH = D / 32, AHEAD = 4;
"""

_PARTS = r"""
    const int capacity = slab_keys_shape[2];
    const int before = lengths[row], last = before + token, columns = last + 1;
    const int share = (columns + parts - 1) / parts;
    const int begin = part * share, end = min(columns, begin + share);
    const size_t head = size_t(row) * kv_heads + kv_head;
    const auto old_keys = SIDE(slab_keys, head * capacity), old_values = SIDE(slab_values, head * capacity);
    const auto new_keys = SIDE(keys, head * tokens), new_values = SIDE(values, head * tokens);

    // Rows without a slot and tokens behind the capacity are there to make up a number: they are not kept.
    const bool is_kept = row < slab_keys_shape[0] && last < capacity;
    if (warp == 0 && begin <= last && last < end && is_kept) {
        const Piece key = PIECE_OF(new_keys, token), value = PIECE_OF(new_values, token);
        KEEP(old_keys, last, key);
        KEEP(old_values, last, value);
    }

    float query[G][WIDTH], sum[G][WIDTH], most[G], total[G];
    for (int g = 0; g < G; ++g) {
        for (int i = 0; i < WIDTH; ++i) {
            query[g][i] = float(queries[((head * G + g) * tokens + token) * D + lane * WIDTH + i]) * scale[0];
            sum[g][i] = 0.0f;
        }
        most[g] = -INFINITY;
        total[g] = 0.0f;
    }

    for (int first = begin + warp * AHEAD; first < end; first += WARPS * AHEAD) {
        Piece key[AHEAD], value[AHEAD];
        #pragma unroll
        for (int a = 0; a < AHEAD; ++a) {
            const int column = min(first + a, last);
            const bool is_old = column < before;
            const int place = is_old ? column : column - before;
            const auto its_keys = is_old ? old_keys : new_keys, its_values = is_old ? old_values : new_values;
            key[a] = PIECE_OF(its_keys, place);
            value[a] = PIECE_OF(its_values, place);
        }
        #pragma unroll
        for (int g = 0; g < G; ++g) {
            float score[AHEAD], highest = most[g];
            #pragma unroll
            for (int a = 0; a < AHEAD; ++a) {
                float dot = 0.0f;
                #pragma unroll
                for (int i = 0; i < WIDTH; ++i) dot += query[g][i] * NUMBER(key[a], i);
                #pragma unroll
                for (int step = 16; step > 0; step /= 2) dot += LANE_XOR(dot, step);
                score[a] = first + a < end ? dot : -INFINITY;
                highest = max(highest, score[a]);
            }
            const float kept = EXP(most[g] - highest);
            most[g] = highest;
            total[g] *= kept;
            #pragma unroll
            for (int i = 0; i < WIDTH; ++i) sum[g][i] *= kept;
            #pragma unroll
            for (int a = 0; a < AHEAD; ++a) {
                const float weight = EXP(score[a] - highest);
                total[g] += weight;
                #pragma unroll
                for (int i = 0; i < WIDTH; ++i) sum[g][i] += weight * NUMBER(value[a], i);
            }
        }
    }

    SHARED float warp_most[WARPS][G], warp_total[WARPS][G], warp_sum[WARPS][D];
    if (lane == 0) {
        for (int g = 0; g < G; ++g) { warp_most[warp][g] = most[g]; warp_total[warp][g] = total[g]; }
    }
    for (int g = 0; g < G; ++g) {
        for (int i = 0; i < WIDTH; ++i) warp_sum[warp][lane * WIDTH + i] = sum[g][i];
        BARRIER();
        float highest = -INFINITY;
        for (int w = 0; w < WARPS; ++w) highest = max(highest, warp_most[w][g]);
        const float base = highest == -INFINITY ? 0.0f : highest;
        const size_t place = ((head * G + g) * tokens + token) * parts + part;
        float all = 0.0f;
        for (int w = 0; w < WARPS; ++w) all += warp_total[w][g] * EXP(warp_most[w][g] - base);
        if (THREAD < D) {
            float joined = 0.0f;
            for (int w = 0; w < WARPS; ++w) joined += warp_sum[w][THREAD] * EXP(warp_most[w][g] - base);
            sums[place * D + THREAD] = O(parts == 1 ? joined / all : joined);
        }
        if (THREAD == 0) {
            stats[place * 2] = highest;
            stats[place * 2 + 1] = all;
        }
        BARRIER();
    }
"""

_JOIN = r"""
    const size_t head = GROUP.x;
    const int parts = stats_shape[2];
    float highest = -INFINITY, total = 0.0f, sum = 0.0f;
    for (int p = 0; p < parts; ++p) highest = max(highest, stats[(head * parts + p) * 2]);
    for (int p = 0; p < parts; ++p) {
        const float weight = EXP(stats[(head * parts + p) * 2] - highest);
        total += weight * stats[(head * parts + p) * 2 + 1];
        sum += weight * sums[(head * parts + p) * D + THREAD];
    }
    out[head * D + THREAD] = T(sum / total);
"""


def _inputs(is_quantised: bool) -> list[str]:
    """Names of the arrays that the first kernel is given."""
    ends = ("", "_scales", "_offsets") if is_quantised else ("",)
    sides = [side + end for side in ("keys", "values", "slab_keys", "slab_values") for end in ends]
    return ["queries", *sides, "lengths", "scale"]


@functools.cache
def _kernels(is_quantised: bool = False) -> tuple[Any, Any, int]:
    """Both kernels, and the warps of a group of the first."""
    here = dialect()
    name, pieces = ("quantised_attention_parts", _QUANTISED) if is_quantised else ("slab_attention_parts", _PLAIN)
    parts = here.kernel(name, _inputs(is_quantised), ["sums", "stats"], _BEGINNING + pieces + _PARTS)
    return parts, here.kernel("slab_attention_join", ["sums", "stats"], ["out"], _JOIN), here.threads // 64


def suits(head_sizes: set[int], setting: str) -> bool:
    """Whether the kernel runs here and takes keys and values of these sizes.

    `setting` is `generation.in_place_attention`: `off`, `on`, or `auto`, which is on CUDA alone.
    """
    runs = mx.cuda.is_available() or (setting == "on" and mx.metal.is_available())
    return setting != "off" and bool(runs) and len(head_sizes) == 1 and not head_sizes - {64, 128, 256}


def settle() -> None:
    """Wait on Metal for what is in flight: before operations of MLX's read slabs that a step may be writing to, and
    before a row without tokens takes a slot that may still be copied from."""
    if mx.metal.is_available():
        mx.synchronize()


def attend_in_place(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    slab_keys: mx.array,
    slab_values: mx.array,
    lengths: mx.array,
    scale: float,
) -> mx.array:
    """Attention of up to `MOST_TOKENS` new tokens a row, whose keys and values are written from its column
    `lengths[row]` on. Each of them sees the columns up to its own.

    Shapes: `queries` [rows, heads, tokens, size], `keys` and `values` [rows, kv heads, tokens, size], slabs [slots, kv
    heads, capacity, size] with row i in slot i, `lengths` [rows] int32, with `tokens` at most the capacity. What rows
    without a slot, and tokens behind the capacity, would write is not kept.
    """
    if len({each.dtype for each in (queries, keys, values, slab_keys, slab_values)}) > 1:
        raise ValueError(f"queries are {queries.dtype}, the slabs {slab_keys.dtype}; the kernel takes one type")
    return _attended(queries, [keys, values, slab_keys, slab_values], slab_keys, lengths, scale, [])


def attend_quantised(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    slab_keys: Slab,
    slab_values: Slab,
    lengths: mx.array,
    scale: float,
    group_size: int,
    bits: int,
) -> mx.array:
    """The same over slabs of quantised keys and values, three arrays each; `bits` are 8 or 4.

    A new token is quantised before anything attends to it.
    """
    if queries.dtype != slab_keys[1].dtype:
        raise ValueError(f"queries are {queries.dtype}, the scales {slab_keys[1].dtype}; the kernel takes one type")
    new = [mx.quantize(side, group_size=group_size, bits=bits) for side in (keys, values)]
    sides = [part for side in (*new, slab_keys, slab_values) for part in side]
    return _attended(queries, sides, slab_keys[0], lengths, scale, [("GROUP_SIZE", group_size), ("BITS", bits)])


def _attended(
    queries: mx.array,
    sides: Sequence[mx.array],
    slab: mx.array,
    lengths: mx.array,
    scale: float,
    form: Sequence[tuple[str, int]],
) -> mx.array:
    """`sides`: the arrays of keys, values and both slabs, `slab` one of the latter, `form` what quantised ones have."""
    rows, heads, tokens, size = queries.shape
    kv_heads, capacity = slab.shape[1], slab.shape[2]
    if heads // kv_heads > _LARGEST_HEADS_PER_KEY:
        raise ValueError(f"{heads // kv_heads} heads share a key; the kernel takes up to {_LARGEST_HEADS_PER_KEY}")
    parts = max(1, min(_MOST_PARTS, capacity // _PART_COLUMNS))
    in_parts, join, warps = _kernels(bool(form))
    shape = [("T", queries.dtype), ("D", size)]
    whole = queries.dtype if parts == 1 else mx.float32
    sums, stats = in_parts(
        inputs=[queries, *sides, lengths, mx.array([scale], dtype=mx.float32)],
        template=[*shape, ("G", heads // kv_heads), ("O", whole), ("WARPS", warps), *form],
        grid=(parts * 32 * warps, kv_heads, rows * tokens),
        threadgroup=(32 * warps, 1, 1),
        output_shapes=[(rows, heads, tokens * parts, size), (rows, heads * tokens, parts, 2)],
        output_dtypes=[whole, mx.float32],
    )
    if parts == 1:
        attended: mx.array = sums
        return attended
    (attended,) = join(
        inputs=[sums, stats],
        template=shape,
        grid=(rows * heads * tokens * size, 1, 1),
        threadgroup=(size, 1, 1),
        output_shapes=[(rows, heads, tokens, size)],
        output_dtypes=[queries.dtype],
    )
    return attended
