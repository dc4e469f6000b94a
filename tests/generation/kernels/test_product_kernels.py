"""Products with few rows on tensor cores, CUDA's source, against float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from support.shims import Shims

from mlx_serving.actors.generation.mlx_engine import product_kernels
from mlx_serving.actors.generation.mlx_engine.product_kernels import dense, quantized, takes_dense, takes_quantized

_TOLERANCE = 2e-5
"""Of the sum of the magnitudes: float32 sums of the digits, which are 16 larger than they are, before it is rounded."""
_ROUNDING = {mx.bfloat16: 2**-8, mx.float16: 2**-11}
TYPES = pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])


def _drawn(dtype: mx.Dtype, seed: int, *shape: int) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32)).astype(dtype)


def _wide(array: mx.array) -> Any:
    return np.array(array.astype(mx.float32)).astype(np.float64)


def _assert_close(found: mx.array, x: mx.array, weights: mx.array, bias: mx.array | None) -> None:
    added = 0 if bias is None else _wide(bias)
    expected = _wide(x) @ _wide(weights).T + added
    bound = _TOLERANCE * (np.abs(_wide(x)) @ np.abs(_wide(weights)).T) + _ROUNDING[found.dtype] * np.abs(expected)
    assert found.dtype == x.dtype
    assert np.all(np.abs(_wide(found) - expected) <= bound)


def _dequantized(parts: Sequence[mx.array], group_size: int) -> mx.array:
    words, scales, offsets = parts
    return mx.dequantize(words, scales.astype(mx.float32), offsets.astype(mx.float32), group_size, 4)


@pytest.fixture(autouse=True)
def gpu(shims: Shims, monkeypatch: pytest.MonkeyPatch) -> None:
    shims.use("cuda", monkeypatch)


@TYPES
@pytest.mark.parametrize(
    ("rows", "k", "outputs", "group_size", "has_bias"),
    [
        pytest.param(1, 256, 32, 64, False, id="one row"),
        pytest.param(3, 192, 40, 64, True, id="odd numbers of groups and outputs"),
        pytest.param(8, 128, 16, 32, False, id="small groups, one tile"),
        pytest.param(9, 512, 16, 128, True, id="large groups, a row more than a tile"),
        pytest.param(33, 128, 24, 64, False, id="rows of two blocks"),
    ],
)
def test_quantized_products(rows: int, k: int, outputs: int, group_size: int, has_bias: bool, dtype: mx.Dtype) -> None:
    x, bias = _drawn(dtype, rows, rows, k), _drawn(dtype, k, outputs) if has_bias else None
    parts = mx.quantize(_drawn(dtype, outputs, outputs, k), group_size, 4)
    assert takes_quantized(*parts, group_size, 4)
    weights = _dequantized(parts, group_size)
    _assert_close(quantized(x, *parts, group_size, bias), x, weights, bias)


@TYPES
@pytest.mark.parametrize(
    ("rows", "k", "outputs", "has_bias"),
    [
        pytest.param(1, 256, 32, False, id="one row"),
        pytest.param(3, 96, 40, True, id="odd numbers of steps and outputs"),
        pytest.param(17, 64, 16, True, id="three tiles of rows, one of outputs"),
        pytest.param(32, 512, 24, False, id="all rows of a block"),
    ],
)
def test_dense_products(rows: int, k: int, outputs: int, has_bias: bool, dtype: mx.Dtype) -> None:
    x, bias = _drawn(dtype, rows, rows, k), _drawn(dtype, k, outputs) if has_bias else None
    weights = _drawn(dtype, outputs, outputs, k)
    assert takes_dense(weights)
    _assert_close(dense(x, weights, bias), x, weights, bias)


def test_a_block_may_take_several_tiles_of_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weights = _drawn(mx.bfloat16, 1, 20, 256), _drawn(mx.bfloat16, 2, 72, 256)
    monkeypatch.setattr(product_kernels, "_MANY_OUTPUTS", 64)
    parts = mx.quantize(weights, 64, 4)
    _assert_close(dense(x, weights), x, weights, None)
    _assert_close(quantized(x, *parts, 64), x, _dequantized(parts, 64), None)


def test_rows_may_lie_along_several_axes() -> None:
    x, weights = _drawn(mx.bfloat16, 5, 2, 3, 64), _drawn(mx.bfloat16, 6, 16, 64)
    found = dense(x, weights)
    assert found.shape == (2, 3, 16)
    np.testing.assert_array_equal(_wide(found).reshape(6, 16), _wide(dense(x.reshape(6, 64), weights)))


def test_a_row_gets_the_same_whatever_is_beside_it() -> None:
    x, weights = _drawn(mx.bfloat16, 3, 25, 256), _drawn(mx.bfloat16, 4, 32, 256)
    parts = mx.quantize(weights, 64, 4)
    for rows in (1, 9, 25):
        few = x[:rows]
        np.testing.assert_array_equal(_wide(dense(few, weights)), _wide(dense(x, weights))[:rows])
        np.testing.assert_array_equal(_wide(quantized(few, *parts, 64)), _wide(quantized(x, *parts, 64))[:rows])


def test_other_weights_are_left_to_mlx() -> None:
    assert not takes_dense(mx.zeros((4, 32)))
    assert not takes_dense(mx.zeros((4, 40), dtype=mx.float16))
    assert not takes_dense(mx.zeros((2, 4, 32), dtype=mx.float16))
    weights, scales, offsets = mx.quantize(mx.zeros((4, 64), dtype=mx.float16), 64, 4)
    assert not takes_quantized(weights, scales, offsets, 64, 8)
    assert not takes_quantized(weights, scales, None, 64, 4)
    assert not takes_quantized(weights, scales.astype(mx.float32), offsets.astype(mx.float32), 64, 4)
