"""Attention of one new token a row over its slab, which is written in place: a kernel for CUDA.

MLX's own operations cannot write where a step in flight still reads, so they copy the slab; this kernel writes the
new key and value to the row's own next column and reads the columns before it, and takes the new ones from its
inputs. Nobody else reads that column before the next step, whose tokens depend on this step's output.

Keys are split over blocks, each with a running softmax (Milakov and Gimelshein, 2018), and a second kernel joins the
parts (Dao et al., "Flash-Decoding", 2023). A row reads its own length, whatever the longest one is.
"""

from __future__ import annotations

import functools
from typing import Any

import mlx.core as mx

_BLOCKS = 264
"""Enough to occupy the largest devices twice."""
_PART_COLUMNS = 512
"""What one block takes in so little time that more of them, and joining their parts, would take longer."""
_WARPS = 16
_LARGEST_HEADS_PER_KEY = 16

_PARTS = r"""
    const int part = blockIdx.x, kv_head = blockIdx.y, row = blockIdx.z;
    const int kv_heads = gridDim.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    constexpr int WIDTH = D / 32, AHEAD = 4;
    struct alignas(WIDTH * sizeof(T)) Piece { T at[WIDTH]; };

    const int capacity = slab_keys_shape[2];
    const int last = lengths[row], columns = last + 1;
    const int share = (columns + PARTS - 1) / PARTS;
    const int begin = part * share, end = min(columns, begin + share);
    const size_t head = size_t(row) * kv_heads + kv_head;
    const T* old_keys = slab_keys + head * capacity * D + lane * WIDTH;
    const T* old_values = slab_values + head * capacity * D + lane * WIDTH;
    const T* new_key = keys + head * D + lane * WIDTH;
    const T* new_value = values + head * D + lane * WIDTH;

    if (warp == 0 && begin <= last && last < end) {
        *(Piece*)(const_cast<T*>(old_keys) + size_t(last) * D) = *(const Piece*)new_key;
        *(Piece*)(const_cast<T*>(old_values) + size_t(last) * D) = *(const Piece*)new_value;
    }

    float query[G][WIDTH], sum[G][WIDTH], most[G], total[G];
    for (int g = 0; g < G; ++g) {
        for (int i = 0; i < WIDTH; ++i) {
            query[g][i] = float(queries[(head * G + g) * D + lane * WIDTH + i]) * scale[0];
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
            key[a] = *(const Piece*)(column == last ? new_key : old_keys + size_t(column) * D);
            value[a] = *(const Piece*)(column == last ? new_value : old_values + size_t(column) * D);
        }
        #pragma unroll
        for (int g = 0; g < G; ++g) {
            float score[AHEAD], highest = most[g];
            #pragma unroll
            for (int a = 0; a < AHEAD; ++a) {
                float dot = 0.0f;
                #pragma unroll
                for (int i = 0; i < WIDTH; ++i) dot += query[g][i] * float(key[a].at[i]);
                #pragma unroll
                for (int step = 16; step > 0; step /= 2) dot += __shfl_xor_sync(0xffffffff, dot, step);
                score[a] = first + a < end ? dot : -INFINITY;
                highest = max(highest, score[a]);
            }
            const float kept = __expf(most[g] - highest);
            most[g] = highest;
            total[g] *= kept;
            #pragma unroll
            for (int i = 0; i < WIDTH; ++i) sum[g][i] *= kept;
            #pragma unroll
            for (int a = 0; a < AHEAD; ++a) {
                const float weight = __expf(score[a] - highest);
                total[g] += weight;
                #pragma unroll
                for (int i = 0; i < WIDTH; ++i) sum[g][i] += weight * float(value[a].at[i]);
            }
        }
    }

    __shared__ float warp_most[WARPS][G], warp_total[WARPS][G], warp_sum[WARPS][D];
    if (lane == 0) {
        for (int g = 0; g < G; ++g) { warp_most[warp][g] = most[g]; warp_total[warp][g] = total[g]; }
    }
    for (int g = 0; g < G; ++g) {
        for (int i = 0; i < WIDTH; ++i) warp_sum[warp][lane * WIDTH + i] = sum[g][i];
        __syncthreads();
        float highest = -INFINITY;
        for (int w = 0; w < WARPS; ++w) highest = max(highest, warp_most[w][g]);
        const float base = highest == -INFINITY ? 0.0f : highest;
        const size_t place = (head * G + g) * PARTS + part;
        float all = 0.0f;
        for (int w = 0; w < WARPS; ++w) all += warp_total[w][g] * __expf(warp_most[w][g] - base);
        if (threadIdx.x < D) {
            float joined = 0.0f;
            for (int w = 0; w < WARPS; ++w) joined += warp_sum[w][threadIdx.x] * __expf(warp_most[w][g] - base);
            sums[place * D + threadIdx.x] = O(PARTS == 1 ? joined / all : joined);
        }
        if (threadIdx.x == 0) {
            stats[place * 2] = highest;
            stats[place * 2 + 1] = all;
        }
        __syncthreads();
    }
"""

_JOIN = r"""
    const size_t head = blockIdx.x;
    float highest = -INFINITY, total = 0.0f, sum = 0.0f;
    for (int p = 0; p < PARTS; ++p) highest = max(highest, stats[(head * PARTS + p) * 2]);
    for (int p = 0; p < PARTS; ++p) {
        const float weight = __expf(stats[(head * PARTS + p) * 2] - highest);
        total += weight * stats[(head * PARTS + p) * 2 + 1];
        sum += weight * sums[(head * PARTS + p) * D + threadIdx.x];
    }
    out[head * D + threadIdx.x] = T(sum / total);
"""


@functools.cache
def _kernels() -> tuple[Any, Any]:
    parts = mx.fast.cuda_kernel(
        name="slab_attention_parts",
        input_names=["queries", "keys", "values", "slab_keys", "slab_values", "lengths", "scale"],
        output_names=["sums", "stats"],
        source=_PARTS,
    )
    join = mx.fast.cuda_kernel(
        name="slab_attention_join", input_names=["sums", "stats"], output_names=["out"], source=_JOIN
    )
    return parts, join


def suits(head_sizes: set[int]) -> bool:
    """Whether the kernel runs on this device and takes keys and values of these sizes."""
    return mx.cuda.is_available() and not head_sizes - {64, 128, 256} and len(head_sizes) == 1


def attend_in_place(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    slab_keys: mx.array,
    slab_values: mx.array,
    lengths: mx.array,
    scale: mx.array,
) -> mx.array:
    """Attention of one new token a row, whose key and value are written to its column `lengths[row]`.

    Shapes: `queries` [rows, heads, 1, size], `keys` and `values` [rows, kv heads, 1, size], slabs [slots, kv heads,
    capacity, size] with row i in slot i, `lengths` [rows] int32 and below the capacity, `scale` [1] float32.
    """
    rows, heads, _, size = queries.shape
    kv_heads, capacity = slab_keys.shape[1], slab_keys.shape[2]
    if heads // kv_heads > _LARGEST_HEADS_PER_KEY:
        raise ValueError(f"{heads // kv_heads} heads share a key; the kernel takes up to {_LARGEST_HEADS_PER_KEY}")
    parts = max(1, min(_BLOCKS // (rows * kv_heads), capacity // _PART_COLUMNS))
    in_parts, join = _kernels()
    shape = [("T", queries.dtype), ("D", size), ("PARTS", parts)]
    whole = queries.dtype if parts == 1 else mx.float32
    sums, stats = in_parts(
        inputs=[queries, keys, values, slab_keys, slab_values, lengths, scale],
        template=[*shape, ("G", heads // kv_heads), ("O", whole), ("WARPS", _WARPS)],
        grid=(parts * 32 * _WARPS, kv_heads, rows),
        threadgroup=(32 * _WARPS, 1, 1),
        output_shapes=[(rows, heads, parts, size), (rows, heads, parts, 2)],
        output_dtypes=[whole, mx.float32],
    )
    if parts == 1:
        attended: mx.array = sums
        return attended
    (attended,) = join(
        inputs=[sums, stats],
        template=shape,
        grid=(rows * heads * size, 1, 1),
        threadgroup=(size, 1, 1),
        output_shapes=[(rows, heads, 1, size)],
        output_dtypes=[queries.dtype],
    )
    return attended
