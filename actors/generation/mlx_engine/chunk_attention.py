"""Attention of a chunk of a prompt over its row's slab, which is written in place: a kernel for CUDA's tensor cores.

It is what `attention_kernels` does for a few tokens, for many: nothing hangs on how many columns there are but how long
the kernel runs, so a pass over any chunk of the same width is the same graph, which MLX neither traces nor instantiates
anew. MLX's own attention is cuDNN's, which makes a plan for every shape (see `composed_attention`).

A warp takes 16 tokens of a head through the columns before and among them, 32 at a time, with a running softmax (Dao,
"FlashAttention-2", 2023). Every thread reads from memory what it multiplies: of keys 16 bytes that lie side by side, in
an order of K of its own; of values a part of a row as wide, whose elements belong to different tiles of the output. So
nothing goes through shared memory, and what a thread has of the scores is what it needs of the weights. The warps of a
block read the same keys and values at nearly the same time; where there are few, they divide the columns among
themselves.
"""

from __future__ import annotations

import functools
from typing import Any

import mlx.core as mx

from mlx_serving.actors.generation.mlx_engine import tensor_cores
from mlx_serving.actors.generation.mlx_engine.kernel_dialects import CUDA

TILE_TOKENS = 16
"""Chunks are a multiple of this."""
_WARPS, _WARPS_OF_SPLIT = 4, 8
_MANY_WARPS = 1024
"""So many occupy a large device; of fewer, all of a block take the same tokens, and a part of the columns each. A power
of two of them, as many as have registers and shared memory."""
_HEAD_SIZES = (64, 128)

_SOURCE = r"""
    constexpr int STEPS = D / 32, PARTS = D / 64, TILES = 4;  // a tile has 8 columns
    const float NEVER = -INFINITY;
    const int tokens = queries_shape[2], capacity = slab_keys_shape[2];
    const int lane = THREAD % 32, warp = THREAD / 32, quad = lane / 4, place = lane % 4;
    const int kv_head = GROUP.y, row = GROUP.z, kv_heads = GROUPS.y;
    const int unit = IS_SPLIT ? int(GROUP.x) : int(GROUP.x) * WARPS + warp, g = unit % G, first = unit / G * 16;
    if (first >= tokens) return;

    const int before = lengths[row], last = before + tokens - 1;
    const size_t head = size_t(row) * kv_heads + kv_head;
    const T* old_keys = slab_keys + head * capacity * D;
    const T* old_values = slab_values + head * capacity * D;
    const T* new_keys = keys + head * tokens * D;
    const T* new_values = values + head * tokens * D;

    if (g == 0 && (!IS_SPLIT || warp == 0)) {
        for (int i = lane; i < 16 * D / 8; i += 32) {
            const int token = first + i / (D / 8), at = i % (D / 8) * 8;
            if (before + token >= capacity) break;
            const size_t from = size_t(token) * D + at, to = size_t(before + token) * D + at;
            *(Piece*)((T*)old_keys + to) = *(const Piece*)(new_keys + from);
            *(Piece*)((T*)old_values + to) = *(const Piece*)(new_values + from);
        }
    }

    const T* its_queries = queries + ((head * G + g) * tokens + first) * D;
    WORD front[STEPS][4], back[STEPS][4];
    #pragma unroll
    for (int s = 0; s < STEPS; ++s) {
        const Piece upper = *(const Piece*)(its_queries + quad * D + s * 32 + place * 8);
        const Piece lower = *(const Piece*)(its_queries + (quad + 8) * D + s * 32 + place * 8);
        for (int i = 0; i < 2; ++i) {
            front[s][2 * i] = upper.at[i];
            front[s][2 * i + 1] = lower.at[i];
            back[s][2 * i] = upper.at[2 + i];
            back[s][2 * i + 1] = lower.at[2 + i];
        }
    }

    float sums[PARTS][8][4], most[2] = {NEVER, NEVER}, total[2] = {0.0f, 0.0f};
    #pragma unroll
    for (int part = 0; part < PARTS; ++part) {
        for (int t = 0; t < 8; ++t) {
            for (int e = 0; e < 4; ++e) sums[part][t][e] = 0.0f;
        }
    }

    const int end = before + first + 16, stride = 8 * TILES * (IS_SPLIT ? WARPS : 1);
    for (int begin = IS_SPLIT ? warp * 8 * TILES : 0; begin < end; begin += stride) {
        float scores[TILES][4];
        #pragma unroll
        for (int i = 0; i < TILES; ++i) {
            for (int e = 0; e < 4; ++e) scores[i][e] = 0.0f;
            const int column = min(begin + 8 * i + quad, last);
            const T* key = column < before ? old_keys + size_t(column) * D : new_keys + size_t(column - before) * D;
            #pragma unroll
            for (int s = 0; s < STEPS; ++s) {
                const Piece piece = *(const Piece*)(key + s * 32 + place * 8);
                multiply<HALF>(scores[i], front[s], piece.at[0], piece.at[1]);
                multiply<HALF>(scores[i], back[s], piece.at[2], piece.at[3]);
            }
        }

        float highest[2] = {most[0], most[1]};
        #pragma unroll
        for (int i = 0; i < TILES; ++i) {
            #pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int column = begin + 8 * i + 2 * place + e % 2, token = first + quad + 8 * (e / 2);
                scores[i][e] = column <= before + token ? scores[i][e] * scale[0] : NEVER;
                highest[e / 2] = max(highest[e / 2], scores[i][e]);
            }
        }
        float kept[2], base[2];
        #pragma unroll
        for (int h = 0; h < 2; ++h) {
            highest[h] = max(highest[h], LANE_XOR(highest[h], 1));
            highest[h] = max(highest[h], LANE_XOR(highest[h], 2));
            base[h] = highest[h] == NEVER ? 0.0f : highest[h];
            kept[h] = EXP(most[h] - base[h]);
            most[h] = highest[h];
            total[h] *= kept[h];
        }
        #pragma unroll
        for (int i = 0; i < TILES; ++i) {
            #pragma unroll
            for (int e = 0; e < 4; ++e) {
                scores[i][e] = EXP(scores[i][e] - base[e / 2]);
                total[e / 2] += scores[i][e];
            }
        }
        #pragma unroll
        for (int part = 0; part < PARTS; ++part) {
            #pragma unroll
            for (int t = 0; t < 8; ++t) {
                #pragma unroll
                for (int e = 0; e < 4; ++e) sums[part][t][e] *= kept[e / 2];
            }
        }

        #pragma unroll
        for (int i = 0; i < TILES; i += 2) {
            const WORD weights[4] = {
                word_of<T>(scores[i][0], scores[i][1]), word_of<T>(scores[i][2], scores[i][3]),
                word_of<T>(scores[i + 1][0], scores[i + 1][1]), word_of<T>(scores[i + 1][2], scores[i + 1][3])};
            const T* value[4];
            #pragma unroll
            for (int k = 0; k < 4; ++k) {
                const int column = min(begin + 8 * (i + k / 2) + 2 * place + k % 2, last);
                value[k] = column < before ? old_values + size_t(column) * D : new_values + size_t(column - before) * D;
            }
            #pragma unroll
            for (int part = 0; part < PARTS; ++part) {
                Piece piece[4];
                #pragma unroll
                for (int k = 0; k < 4; ++k) piece[k] = *(const Piece*)(value[k] + part * 64 + quad * 8);
                #pragma unroll
                for (int w = 0; w < 4; ++w) {
                    const WORD a = piece[0].at[w], b = piece[1].at[w], c = piece[2].at[w], d = piece[3].at[w];
                    multiply<HALF>(sums[part][2 * w], weights, PAIRED(a, b, 0x5410), PAIRED(c, d, 0x5410));
                    multiply<HALF>(sums[part][2 * w + 1], weights, PAIRED(a, b, 0x7632), PAIRED(c, d, 0x7632));
                }
            }
        }
    }

    #pragma unroll
    for (int h = 0; h < 2; ++h) {
        total[h] += LANE_XOR(total[h], 1);
        total[h] += LANE_XOR(total[h], 2);
    }
    if constexpr (IS_SPLIT) {
        // One half of the warps joins what the other half has, until one has all.
        constexpr int HALF_OF_THEM = WARPS / 2;
        SHARED float all_most[HALF_OF_THEM][2][32], all_total[HALF_OF_THEM][2][32];
        SHARED float all_sums[HALF_OF_THEM][PARTS][8][4][32];
        for (int staying = HALF_OF_THEM; staying > 0; staying /= 2) {
            if (warp >= staying && warp < 2 * staying) {
                const int w = warp - staying;
                for (int h = 0; h < 2; ++h) {
                    all_most[w][h][lane] = most[h];
                    all_total[w][h][lane] = total[h];
                }
                #pragma unroll
                for (int part = 0; part < PARTS; ++part) {
                    #pragma unroll
                    for (int t = 0; t < 8; ++t) {
                        #pragma unroll
                        for (int e = 0; e < 4; ++e) all_sums[w][part][t][e][lane] = sums[part][t][e];
                    }
                }
            }
            BARRIER();
            if (warp < staying) {
                float own[2], other[2];
                #pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const float highest = max(most[h], all_most[warp][h][lane]);
                    const float base = highest == NEVER ? 0.0f : highest;
                    own[h] = EXP(most[h] - base);
                    other[h] = EXP(all_most[warp][h][lane] - base);
                    most[h] = highest;
                    total[h] = own[h] * total[h] + other[h] * all_total[warp][h][lane];
                }
                #pragma unroll
                for (int part = 0; part < PARTS; ++part) {
                    #pragma unroll
                    for (int t = 0; t < 8; ++t) {
                        #pragma unroll
                        for (int e = 0; e < 4; ++e) {
                            sums[part][t][e] =
                                own[e / 2] * sums[part][t][e] + other[e / 2] * all_sums[warp][part][t][e][lane];
                        }
                    }
                }
            }
            BARRIER();
        }
        if (warp > 0) return;
    }
    #pragma unroll
    for (int h = 0; h < 2; ++h) {
        T* its_out = out + ((size_t(row) * tokens + first + quad + 8 * h) * kv_heads * G + kv_head * G + g) * D;
        #pragma unroll
        for (int part = 0; part < PARTS; ++part) {
            #pragma unroll
            for (int c = 0; c < 2; ++c) {
                Piece piece;
                #pragma unroll
                for (int w = 0; w < 4; ++w) {
                    const float even = sums[part][2 * w][2 * h + c], odd = sums[part][2 * w + 1][2 * h + c];
                    piece.at[w] = word_of<T>(even / total[h], odd / total[h]);
                }
                *(Piece*)(its_out + part * 64 + (2 * place + c) * 8) = piece;
            }
        }
    }
"""


@functools.cache
def _kernel() -> Any:
    inputs = ["queries", "keys", "values", "slab_keys", "slab_values", "lengths", "scale"]
    return CUDA.kernel("chunk_attention", inputs, ["out"], _SOURCE, tensor_cores.FUNCTIONS)


def suits(head_sizes: set[int]) -> bool:
    """Whether the kernel runs here and takes keys and values of these sizes."""
    return bool(mx.cuda.is_available()) and not head_sizes - set(_HEAD_SIZES)


def attend_in_place(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    slab_keys: mx.array,
    slab_values: mx.array,
    lengths: mx.array,
    scale: float,
) -> mx.array:
    """What `attention_kernels.attend_in_place` computes, of any multiple of `TILE_TOKENS` tokens a row.

    All arrays but `lengths` are of one type of half precision. What would be written behind a slab's capacity is not
    kept. The result lies token by token, as a layer wants it next, so that nothing is copied there.
    """
    rows, heads, tokens, size = queries.shape
    kv_heads = slab_keys.shape[1]
    if tokens % TILE_TOKENS:
        raise ValueError(f"{tokens} tokens are no multiple of {TILE_TOKENS}")
    kinds = {each.dtype for each in (queries, keys, values, slab_keys, slab_values)}
    if len(kinds) > 1 or queries.dtype not in tensor_cores.TYPES:
        raise ValueError(f"queries are {queries.dtype}, the slabs {slab_keys.dtype}; the kernel takes half precision")
    units = heads // kv_heads * (tokens // TILE_TOKENS)
    is_split = rows * kv_heads * units < _MANY_WARPS
    warps = _WARPS_OF_SPLIT if is_split else _WARPS
    (attended,) = _kernel()(
        inputs=[queries, keys, values, slab_keys, slab_values, lengths, mx.array([scale], dtype=mx.float32)],
        template=[
            ("T", queries.dtype),
            ("HALF", queries.dtype == mx.float16),
            ("D", size),
            ("G", heads // kv_heads),
            ("WARPS", warps),
            ("IS_SPLIT", is_split),
        ],
        grid=((units if is_split else -(-units // warps)) * 32 * warps, kv_heads, rows),
        threadgroup=(32 * warps, 1, 1),
        output_shapes=[(rows, tokens, heads, size)],
        output_dtypes=[queries.dtype],
    )
    found: mx.array = attended.transpose(0, 2, 1, 3)
    return found
