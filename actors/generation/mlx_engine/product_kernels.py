"""Products of a few rows with a weight on CUDA, dense or in 4 bits: kernels for its tensor cores.

MLX hands products of two and more rows to cuBLAS, which costs the host four times what a kernel does, and compiles a
product with 4-bit weights for half a minute when it is first needed. These kernels read a weight once for up to 32
rows; for one row without a bias MLX has kernels that cost the host less. A warp multiplies tiles of 16 outputs with 8
rows each (see `tensor_cores`); every thread multiplies what lies side by side in memory, and nothing is moved between
threads. Digits of 4 bits become floats between 16 and 31 by their bits alone. Scales and biases are applied to the sums
of a group, in float32:

    sum of (s q + b) x = s (sum of (16 + q) x) + (b - 16 s) (sum of x)

The warps of a block divide K among themselves, and add up what they have in a fixed order: a row's result is the same
whatever is beside it.

CUDA alone: on Metal, MLX's own products share weights between rows, and cost the host no more than others.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import attrs
import mlx.core as mx

from mlx_serving.actors.generation.mlx_engine import tensor_cores
from mlx_serving.actors.generation.mlx_engine.kernel_dialects import CUDA

MOST_QUANTIZED_ROWS = 64
"""Of one product. Beyond, cuBLAS is better with weights that were dequantised for it."""
_MOST_DENSE_ROWS, _FEWER_DENSE_ROWS, _MANY_WEIGHTS = 32, 16, 8 << 20
_TILE_OUTPUTS, _TILE_ROWS = 16, 8
_MANY_OUTPUTS, _VERY_MANY_OUTPUTS = 8192, 32768
"""So many occupy a large device even where few warps share a tile, or a warp takes several."""
_GROUP_SIZES = (32, 64, 128)
_STEP = 32
"""Elements of K that the threads of a row take in at once."""

_DIGITS = r"""
// The digits `place` and `place` + 4 of a word, each as 16 more than it is.
template <bool HALF>
FUNCTION WORD two_digits(WORD word, int place) {
    constexpr int LIFT = HALF ? 6 : 3;
    constexpr WORD MASK = 0x000f000fu << LIFT, SIXTEENS = HALF ? 0x4c004c00u : 0x41804180u;
    const int up = LIFT - 4 * place;
    return ((up >= 0 ? word << up : word >> -up) & MASK) | SIXTEENS;
}
"""

_BEGINNING = r"""
    SHARED float joined[WARPS / 2][OUTPUT_TILES][ROW_TILES][4][32];

    int rows = 1;
    for (int axis = 0; axis < AXES - 1; ++axis) rows *= x_shape[axis];
    const int K = x_shape[AXES - 1], N = weights_shape[0];
    const int lane = THREAD % 32, warp = THREAD / 32, quad = lane / 4, place = lane % 4;
    const int first_output = int(GROUP.x) * 16 * OUTPUT_TILES, first_row = int(GROUP.y) * 8 * ROW_TILES;

    const T* its_x[ROW_TILES];
    #pragma unroll
    for (int j = 0; j < ROW_TILES; ++j) its_x[j] = x + size_t(min(first_row + 8 * j + quad, rows - 1)) * K;
    size_t output_of[OUTPUT_TILES][2];
    #pragma unroll
    for (int i = 0; i < OUTPUT_TILES; ++i) {
        for (int h = 0; h < 2; ++h) output_of[i][h] = min(first_output + 16 * i + 8 * h + quad, N - 1);
    }

    float sums[OUTPUT_TILES][ROW_TILES][4];
    #pragma unroll
    for (int i = 0; i < OUTPUT_TILES; ++i) {
        for (int j = 0; j < ROW_TILES; ++j) {
            for (int e = 0; e < 4; ++e) sums[i][j][e] = 0.0f;
        }
    }
"""

_DENSE = r"""
    for (int begin = warp * SPAN; begin < K / 32; begin += WARPS * SPAN) {
        Piece a[OUTPUT_TILES][2][SPAN];
        #pragma unroll
        for (int i = 0; i < OUTPUT_TILES; ++i) {
            #pragma unroll
            for (int h = 0; h < 2; ++h) {
                #pragma unroll
                for (int s = 0; s < SPAN; ++s) {
                    a[i][h][s] = *(const Piece*)(weights + output_of[i][h] * K + (begin + s) * 32 + place * 8);
                }
            }
        }
        #pragma unroll
        for (int s = 0; s < SPAN; ++s) {
            Piece b[ROW_TILES];
            #pragma unroll
            for (int j = 0; j < ROW_TILES; ++j) b[j] = *(const Piece*)(its_x[j] + (begin + s) * 32 + place * 8);
            #pragma unroll
            for (int i = 0; i < OUTPUT_TILES; ++i) {
                const Piece upper = a[i][0][s], lower = a[i][1][s];
                const WORD front[4] = {upper.at[0], lower.at[0], upper.at[1], lower.at[1]};
                const WORD back[4] = {upper.at[2], lower.at[2], upper.at[3], lower.at[3]};
                #pragma unroll
                for (int j = 0; j < ROW_TILES; ++j) {
                    multiply<HALF>(sums[i][j], front, b[j].at[0], b[j].at[1]);
                    multiply<HALF>(sums[i][j], back, b[j].at[2], b[j].at[3]);
                }
            }
        }
    }
"""

_QUANTIZED = r"""
    constexpr int WORDS = GROUP_SIZE / 32;  // of a group, that a thread takes
    constexpr WORD ONES = HALF ? 0x3c003c00u : 0x3f803f80u;
    struct alignas(4 * WORDS) Digits { WORD at[WORDS]; };
    struct alignas(2 * SPAN) Factors { T at[SPAN]; };
    const WORD ones[4] = {ONES, ONES, ONES, ONES};
    const int groups = K / GROUP_SIZE;

    for (int begin = warp * SPAN; begin < groups; begin += WARPS * SPAN) {
        Digits digits[OUTPUT_TILES][2][SPAN];
        Factors scale[OUTPUT_TILES][2], offset[OUTPUT_TILES][2];
        #pragma unroll
        for (int i = 0; i < OUTPUT_TILES; ++i) {
            #pragma unroll
            for (int h = 0; h < 2; ++h) {
                const WORD* its_words = weights + output_of[i][h] * (K / 8) + place * WORDS;
                #pragma unroll
                for (int s = 0; s < SPAN; ++s) {
                    digits[i][h][s] = *(const Digits*)(its_words + (begin + s) * (4 * WORDS));
                }
                scale[i][h] = *(const Factors*)(scales + output_of[i][h] * groups + begin);
                offset[i][h] = *(const Factors*)(offsets + output_of[i][h] * groups + begin);
            }
        }
        #pragma unroll
        for (int s = 0; s < SPAN; ++s) {
            float all[ROW_TILES][4], part[OUTPUT_TILES][ROW_TILES][4];
            #pragma unroll
            for (int j = 0; j < ROW_TILES; ++j) {
                for (int e = 0; e < 4; ++e) {
                    all[j][e] = 0.0f;
                    for (int i = 0; i < OUTPUT_TILES; ++i) part[i][j][e] = 0.0f;
                }
            }
            #pragma unroll
            for (int w = 0; w < WORDS; ++w) {
                WORD b[ROW_TILES][4];
                #pragma unroll
                for (int j = 0; j < ROW_TILES; ++j) {
                    const int column = (begin + s) * GROUP_SIZE + (place * WORDS + w) * 8;
                    const Piece piece = *(const Piece*)(its_x[j] + column);
                    b[j][0] = PAIRED(piece.at[0], piece.at[2], 0x5410);
                    b[j][1] = PAIRED(piece.at[0], piece.at[2], 0x7632);
                    b[j][2] = PAIRED(piece.at[1], piece.at[3], 0x5410);
                    b[j][3] = PAIRED(piece.at[1], piece.at[3], 0x7632);
                    multiply<HALF>(all[j], ones, b[j][0], b[j][1]);
                    multiply<HALF>(all[j], ones, b[j][2], b[j][3]);
                }
                #pragma unroll
                for (int i = 0; i < OUTPUT_TILES; ++i) {
                    const WORD upper = digits[i][0][s].at[w], lower = digits[i][1][s].at[w];
                    const WORD front[4] = {two_digits<HALF>(upper, 0), two_digits<HALF>(lower, 0),
                                           two_digits<HALF>(upper, 1), two_digits<HALF>(lower, 1)};
                    const WORD back[4] = {two_digits<HALF>(upper, 2), two_digits<HALF>(lower, 2),
                                          two_digits<HALF>(upper, 3), two_digits<HALF>(lower, 3)};
                    #pragma unroll
                    for (int j = 0; j < ROW_TILES; ++j) {
                        multiply<HALF>(part[i][j], front, b[j][0], b[j][1]);
                        multiply<HALF>(part[i][j], back, b[j][2], b[j][3]);
                    }
                }
            }
            #pragma unroll
            for (int i = 0; i < OUTPUT_TILES; ++i) {
                #pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const float factor = float(scale[i][h].at[s]), rest = float(offset[i][h].at[s]) - 16.0f * factor;
                    #pragma unroll
                    for (int j = 0; j < ROW_TILES; ++j) {
                        sums[i][j][2 * h] += factor * part[i][j][2 * h] + rest * all[j][0];
                        sums[i][j][2 * h + 1] += factor * part[i][j][2 * h + 1] + rest * all[j][1];
                    }
                }
            }
        }
    }
"""

_END = r"""
    // The upper half of the warps hands over to the lower half until one has it all.
    for (int left = WARPS / 2; left > 0; left /= 2) {
        #pragma unroll
        for (int i = 0; i < OUTPUT_TILES; ++i) {
            #pragma unroll
            for (int j = 0; j < ROW_TILES; ++j) {
                #pragma unroll
                for (int e = 0; e < 4; ++e) {
                    if (warp >= left && warp < 2 * left) joined[warp - left][i][j][e][lane] = sums[i][j][e];
                }
            }
        }
        BARRIER();
        #pragma unroll
        for (int i = 0; i < OUTPUT_TILES; ++i) {
            #pragma unroll
            for (int j = 0; j < ROW_TILES; ++j) {
                #pragma unroll
                for (int e = 0; e < 4; ++e) {
                    if (warp < left) sums[i][j][e] += joined[warp][i][j][e][lane];
                }
            }
        }
        BARRIER();
    }
    if (warp > 0) return;
    #pragma unroll
    for (int i = 0; i < OUTPUT_TILES; ++i) {
        #pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int output = first_output + 16 * i + 8 * h + quad;
            const float added = BIASED && output < N ? float(bias[output]) : 0.0f;
            #pragma unroll
            for (int j = 0; j < ROW_TILES; ++j) {
                #pragma unroll
                for (int c = 0; c < 2; ++c) {
                    const int row = first_row + 8 * j + 2 * place + c;
                    if (output < N && row < rows) y[size_t(row) * N + output] = T(sums[i][j][2 * h + c] + added);
                }
            }
        }
    }
"""


@functools.cache
def _dense_kernel() -> Any:
    return CUDA.kernel(
        "dense_product", ["x", "weights", "bias"], ["y"], _BEGINNING + _DENSE + _END, tensor_cores.FUNCTIONS
    )


@functools.cache
def _quantized_kernel() -> Any:
    inputs, functions = ["x", "weights", "scales", "offsets", "bias"], tensor_cores.FUNCTIONS + _DIGITS
    return CUDA.kernel("quantized_product", inputs, ["y"], _BEGINNING + _QUANTIZED + _END, functions)


def takes_dense(weights: mx.array) -> bool:
    """Whether `dense` multiplies with such weights: [N, K] in half precision, K a multiple of 32."""
    return weights.ndim == 2 and weights.dtype in tensor_cores.TYPES and weights.shape[1] % _STEP == 0


def takes_quantized(weights: mx.array, scales: mx.array, offsets: mx.array | None, group_size: int, bits: int) -> bool:
    """Whether `quantized` multiplies with such weights: 4 bits, packed for K a multiple of the group size."""
    is_flat = weights.ndim == 2 and offsets is not None and offsets.dtype == scales.dtype
    return is_flat and bits == 4 and group_size in _GROUP_SIZES and scales.dtype in tensor_cores.TYPES


def most_dense_rows(weights: mx.array) -> int:
    """Of one product by `dense`. Beyond, cuBLAS is better; sooner where few outputs sum up very many elements each."""
    is_deep = weights.shape[0] < _MANY_OUTPUTS and weights.size > _MANY_WEIGHTS
    return _FEWER_DENSE_ROWS if is_deep else _MOST_DENSE_ROWS


@attrs.frozen
class _Form:
    """How a kernel divides its work, as measured on an H200. A row's sums are in an order that `warps` and `span` alone
    decide: they must not hang on the number of rows."""

    warps: int
    span: int
    """Steps or groups that a warp takes at once."""
    row_tiles: int
    output_tiles: int

    @classmethod
    def of_dense(cls, rows: int, outputs: int, steps: int) -> _Form:
        row_tiles = _row_tiles(rows)
        if outputs >= _MANY_OUTPUTS:
            return cls(4, 1, row_tiles, min(2, row_tiles))
        return cls(16, 1 if steps % 2 else 2, row_tiles, 1)

    @classmethod
    def of_quantized(cls, rows: int, outputs: int, groups: int) -> _Form:
        row_tiles, span = _row_tiles(rows), 1 if groups % 2 else 2
        if outputs >= _MANY_OUTPUTS:
            return cls(4, span, row_tiles, max(row_tiles, 1 + (outputs >= _VERY_MANY_OUTPUTS)))
        return cls(8, span, row_tiles, 2 if row_tiles == 4 else 1)


def _row_tiles(rows: int) -> int:
    return next((tiles for tiles in (1, 2) if rows <= tiles * _TILE_ROWS), 4)


def dense(x: mx.array, weights: mx.array, bias: mx.array | None = None) -> mx.array:
    """`x @ weights.T + bias` for x [..., K] with few rows and weights [N, K].

    All arrays are of one type, bfloat16 or float16, and so is the result [..., N]. Sums are float32.
    """
    form = _Form.of_dense(rows_of(x), weights.shape[0], x.shape[-1] // _STEP)
    return _launch(_dense_kernel(), form, x, [weights], bias, [])


def quantized(
    x: mx.array, weights: mx.array, scales: mx.array, offsets: mx.array, group_size: int, bias: mx.array | None = None
) -> mx.array:
    """What `mx.quantized_matmul` computes for affine 4-bit weights [N, K / 8] and x [..., K] with few rows, and `bias`.

    All floating-point arrays are of one type, bfloat16 or float16, and so is the result [..., N]. Sums are float32;
    relative to the sum of the magnitudes its error is below 2e-5 before it is rounded.
    """
    form = _Form.of_quantized(rows_of(x), weights.shape[0], scales.shape[1])
    return _launch(_quantized_kernel(), form, x, [weights, scales, offsets], bias, [("GROUP_SIZE", group_size)])


def _launch(
    kernel: Any,
    form: _Form,
    x: mx.array,
    parts: Sequence[mx.array],
    bias: mx.array | None,
    template: Sequence[tuple[str, Any]],
) -> mx.array:
    rows, outputs = rows_of(x), parts[0].shape[0]
    blocks = -(-outputs // (_TILE_OUTPUTS * form.output_tiles)), -(-rows // (_TILE_ROWS * form.row_tiles))
    (y,) = kernel(
        inputs=[x, *parts, parts[-1] if bias is None else bias],
        template=[
            ("T", x.dtype),
            ("AXES", x.ndim),
            ("HALF", x.dtype == mx.float16),
            ("BIASED", bias is not None),
            ("WARPS", form.warps),
            ("SPAN", form.span),
            ("OUTPUT_TILES", form.output_tiles),
            ("ROW_TILES", form.row_tiles),
            *template,
        ],
        grid=(blocks[0] * 32 * form.warps, blocks[1], 1),
        threadgroup=(32 * form.warps, 1, 1),
        output_shapes=[(*x.shape[:-1], outputs)],
        output_dtypes=[x.dtype],
    )
    product: mx.array = y
    return product


def rows_of(x: mx.array) -> int:
    """Of x [..., K]."""
    return int(x.size // x.shape[-1])
