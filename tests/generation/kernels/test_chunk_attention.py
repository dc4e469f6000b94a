"""Attention of a chunk of a prompt, CUDA's source, against float64."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from support.shims import Shims

from mlx_serving.actors.generation.mlx_engine import chunk_attention
from mlx_serving.actors.generation.mlx_engine.chunk_attention import attend_in_place

_ERROR = {mx.bfloat16: 2**-7, mx.float16: 2**-10}
"""Of the largest value: weights and results are rounded to the type."""


@pytest.fixture(autouse=True)
def gpu(shims: Shims, monkeypatch: pytest.MonkeyPatch) -> None:
    shims.use("cuda", monkeypatch)


class Chunk:
    """Rows of different lengths and a chunk of each. What may not be read is NaN."""

    def __init__(self, lengths: tuple[int, ...], tokens: int, share: int, size: int, dtype: mx.Dtype, capacity: int):
        random = np.random.default_rng(tokens + size)
        rows, kv_heads = len(lengths), 2
        self.lengths = lengths

        def drawn(*shape: int) -> Any:
            return random.normal(size=shape).astype(np.float32)

        slabs = [drawn(rows, kv_heads, capacity, size) for _ in range(2)]
        for slab in slabs:
            for row, length in enumerate(lengths):
                slab[row, :, length:] = np.nan
        self.slabs = [mx.array(slab).astype(dtype) for slab in slabs]
        self.queries = mx.array(drawn(rows, kv_heads * share, tokens, size)).astype(dtype)
        self.keys, self.values = (mx.array(drawn(rows, kv_heads, tokens, size)).astype(dtype) for _ in range(2))
        mx.eval(self.queries, self.keys, self.values, self.slabs)

    def attend(self) -> mx.array:
        lengths = mx.array(list(self.lengths), dtype=mx.int32)
        scale = 1 / np.sqrt(self.queries.shape[3])
        keys, values = self.slabs
        return attend_in_place(self.queries, self.keys, self.values, keys, values, lengths, float(scale))

    def expected(self, row: int) -> Any:
        """[heads, tokens, size], from the old columns and the chunk."""
        queries = wide(self.queries)[row]
        share, tokens, length = queries.shape[0] // 2, queries.shape[1], self.lengths[row]
        sides = [
            np.repeat(np.concatenate([old[row, :, :length], wide(new)[row]], axis=1), share, axis=0)
            for old, new in zip(self.before, (self.keys, self.values), strict=True)
        ]
        scores = queries @ sides[0].swapaxes(1, 2) / np.sqrt(queries.shape[2])
        hidden = np.arange(length + tokens) > length + np.arange(tokens)[:, None]
        scores[:, hidden] = -np.inf
        weights = np.exp(scores - scores.max(axis=2, keepdims=True))
        return weights / weights.sum(axis=2, keepdims=True) @ sides[1]

    @property
    def before(self) -> list[Any]:
        return [wide(slab) for slab in self.slabs]


def wide(array: mx.array) -> Any:
    return np.array(array.astype(mx.float32)).astype(np.float64)


@pytest.mark.parametrize("many_warps", [0, 1024], ids=["a warp alone", "columns divided"])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize(
    ("lengths", "tokens", "share", "size"),
    [
        pytest.param((0,), 16, 1, 64, id="the beginning of a prompt"),
        pytest.param((37, 0, 64), 48, 3, 64, id="rows of different lengths, heads that share keys"),
        pytest.param((150,), 32, 7, 128, id="heads of 128"),
    ],
)
def test_a_chunk_attends_to_what_is_before_each_token_and_is_written(
    monkeypatch: pytest.MonkeyPatch,
    lengths: tuple[int, ...],
    tokens: int,
    share: int,
    size: int,
    dtype: mx.Dtype,
    many_warps: int,
) -> None:
    monkeypatch.setattr(chunk_attention, "_MANY_WARPS", many_warps)
    chunk = Chunk(lengths, tokens, share, size, dtype, capacity=192)
    expected = [chunk.expected(row) for row in range(len(lengths))]
    slabs = chunk.before
    found = chunk.attend()
    assert found.dtype == dtype
    for slab, new in zip(slabs, (chunk.keys, chunk.values), strict=True):
        for row, length in enumerate(lengths):
            slab[row, :, length : length + tokens] = wide(new)[row]
    for slab, after in zip(slabs, chunk.before, strict=True):
        np.testing.assert_array_equal(slab, after)
    for row, wanted in enumerate(expected):
        limit = _ERROR[dtype] * np.abs(wanted).max()
        np.testing.assert_allclose(wide(found)[row], wanted, rtol=0, atol=limit)


def test_what_pads_a_chunk_is_not_kept_behind_the_capacity() -> None:
    chunk = Chunk((40,), 32, 2, 64, mx.bfloat16, capacity=48)
    expected = chunk.expected(0)
    slabs = chunk.before
    found = wide(chunk.attend())[0]
    for slab, after, new in zip(slabs, chunk.before, (chunk.keys, chunk.values), strict=True):
        slab[0, :, 40:] = wide(new)[0, :, :8]
        np.testing.assert_array_equal(slab, after)
    np.testing.assert_allclose(found[:, :8], expected[:, :8], rtol=0, atol=2**-7 * np.abs(expected).max())


def test_what_the_kernel_does_not_take_is_refused() -> None:
    with pytest.raises(ValueError, match="17 tokens are no multiple of 16"):
        Chunk((0,), 17, 1, 64, mx.bfloat16, 32).attend()
    with pytest.raises(ValueError, match="takes half precision"):
        Chunk((0,), 16, 1, 64, mx.float32, 32).attend()


def test_it_is_for_cuda_and_for_some_sizes_of_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not chunk_attention.suits({64})
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    assert chunk_attention.suits({64})
    assert not chunk_attention.suits({256})
