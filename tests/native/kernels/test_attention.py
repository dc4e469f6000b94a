"""Attention: one body for both twins, against references in float64, in every instruction set here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.kernel_checks import Floats, agrees, exact, examples, normal, seeds, types


def attended(queries: Floats, keys: Floats, values: Floats, lengths: list[int], scale: float, causal: bool) -> Floats:
    rows, heads, tokens, _ = queries.shape
    result = np.zeros_like(queries)
    for row, head, token in np.ndindex(rows, heads, tokens):
        seen = lengths[row] - tokens + token + 1 if causal else lengths[row]
        kv_head = head // (heads // keys.shape[1])
        scores = keys[row, kv_head, :seen] @ queries[row, head, token] * scale
        weights = np.exp(scores - scores.max())
        result[row, head, token] = weights @ values[row, kv_head, :seen] / weights.sum()
    return result


shapes = st.tuples(
    st.integers(1, 3), st.sampled_from([1, 3]), st.integers(1, 3), st.sampled_from([1, 2, 7, 30, 180]),
    st.sampled_from([16, 64, 80, 128]), st.sampled_from([0, 3, 90, 700]),
)  # fmt: skip
"""Rows, heads a key, key heads, queries, head size, and columns before them."""


@examples(25)
@given(seeds, types, shapes, st.booleans())
def test_attention(
    twin: ModuleType, seed: int, dtype: mx.Dtype, shape: tuple[int, int, int, int, int, int], causal: bool
) -> None:
    rows, group, kv_heads, tokens, size, before = shape
    queries = normal(seed, (rows, tokens, group * kv_heads, size), dtype).swapaxes(1, 2)
    keys, values = (
        normal(seed + i, (rows, kv_heads, before + tokens + 5, size), dtype)[:, :, : before + tokens] for i in (1, 2)
    )
    expected = attended(exact(queries), exact(keys), exact(values), [before + tokens] * rows, size**-0.5, causal)
    agrees(twin.attention(queries, keys, values, size**-0.5, causal), expected, dtype)


@examples(25)
@given(seeds, types, shapes)
def test_attention_to_slabs(
    twin: ModuleType, seed: int, dtype: mx.Dtype, shape: tuple[int, int, int, int, int, int]
) -> None:
    rows, group, kv_heads, tokens, size, before = shape
    queries = normal(seed, (rows, group * kv_heads, tokens, size), dtype)
    keys, values = (normal(seed + i, (rows + 1, kv_heads, before + tokens + 5, size), dtype) for i in (1, 2))
    lengths = [tokens + before * row // rows for row in range(rows)]
    expected = attended(exact(queries), exact(keys), exact(values), lengths, size**-0.5, True)
    found = twin.slab_attention(queries, keys, values, mx.array(lengths, dtype=mx.int32), size**-0.5)
    agrees(found, expected, dtype)


VIEWS: dict[str, Callable[[mx.array], tuple[mx.array, mx.array]]] = {
    "itself": lambda a: (whole := mx.contiguous(a), whole),
    "some columns": lambda a: (whole := mx.pad(a, [(0, 0), (0, 0), (1, 2), (0, 0)]), whole[:, :, 1:-2]),
    "columns backwards": lambda a: (whole := mx.contiguous(a[:, :, ::-1]), whole[:, :, ::-1]),
    "turned": lambda a: (whole := mx.contiguous(a.swapaxes(2, 3)), whole.swapaxes(2, 3)),
    "every other": lambda a: (whole := mx.repeat(a, 2, axis=3), whole[..., ::2]),
    "backwards": lambda a: (whole := mx.contiguous(a[..., ::-1]), whole[..., ::-1]),
    "one for all rows": lambda a: (whole := mx.contiguous(a[:1]), mx.broadcast_to(whole, a.shape)),
}
"""Ways for a slab to lie in memory: an array, and the slab in it. The last one has its first row's numbers in all."""
GETS_MEMORY = ("turned", "every other", "backwards")
"""What is no slab as the kernel takes them, and gets memory of its own; so does one for all of several rows."""


def widened(slab: Sequence[mx.array], group_size: int, bits: int) -> Floats:
    digits, scales, biases = slab[0], slab[1].astype(mx.float32), slab[2].astype(mx.float32)
    return exact(mx.dequantize(digits, scales, biases, group_size=group_size, bits=bits))


@examples(25)
@given(
    seeds, shapes, types, types, st.sampled_from([4, 8]), st.sampled_from([32, 64, 128]), st.sampled_from(list(VIEWS))
)
def test_attention_to_quantised_slabs(
    twin: ModuleType, seed: int, shape: tuple[int, int, int, int, int, int], dtype: mx.Dtype, scale_type: mx.Dtype,
    bits: int, group_size: int, view: str,
) -> None:  # fmt: skip
    rows, group, kv_heads, tokens, size, before = shape
    size = size // group_size * group_size or group_size
    queries = normal(seed, (rows, group * kv_heads, tokens, size), dtype)
    slabs = []
    for i in (1, 2):
        wide = normal(seed + i, (rows, kv_heads, before + tokens + 5, size), scale_type)
        parts = mx.quantize(wide, group_size=group_size, bits=bits)
        slabs.append([VIEWS[view](part)[1] for part in parts])
    sides = [widened(slab, group_size, bits) for slab in slabs]
    lengths = [tokens + before * row // rows for row in range(rows)]
    found = twin.quantized_slab_attention(
        queries, *slabs, mx.array(lengths, dtype=mx.int32), size**-0.5, group_size, bits
    )
    agrees(found, attended(exact(queries), sides[0], sides[1], lengths, size**-0.5, True), dtype)


@examples(50)
@given(seeds, types, shapes, st.sampled_from(list(VIEWS)))
def test_attention_that_writes_in_place(
    twin: ModuleType, seed: int, dtype: mx.Dtype, shape: tuple[int, int, int, int, int, int], view: str
) -> None:
    rows, group, kv_heads, tokens, size, before = shape
    queries = normal(seed, (rows, group * kv_heads, tokens, size), dtype)
    keys, values = (normal(seed + i, (rows, tokens, kv_heads, size), dtype).swapaxes(1, 2) for i in (1, 2))
    pairs = [VIEWS[view](normal(seed + i, (rows, kv_heads, before + tokens + 5, size), dtype)) for i in (3, 4)]
    slabs = [slab for _, slab in pairs]
    mx.eval(pairs)
    wholes = [exact(whole) for whole, _ in pairs]
    lengths = [before * row // rows for row in range(rows)]
    expected = [exact(slab) for slab in slabs]
    for side, new in zip(expected, (keys, values), strict=True):
        for row, first in enumerate(lengths):
            side[row, :, first : first + tokens] = exact(new)[row]
    found = twin.attend_in_place(queries, keys, values, *slabs, mx.array(lengths, dtype=mx.int32), size**-0.5)
    after = [length + tokens for length in lengths]
    agrees(found, attended(exact(queries), expected[0], expected[1], after, size**-0.5, True), dtype)
    for slab, side in zip(slabs, expected, strict=True):
        np.testing.assert_array_equal(exact(slab), side)
    if view in GETS_MEMORY or (view == "one for all rows" and rows > 1):
        for (whole, _), was in zip(pairs, wholes, strict=True):
            np.testing.assert_array_equal(exact(whole), was)


def bits_of(part: mx.array) -> npt.NDArray[Any]:
    return np.array(part.view(mx.uint16 if part.dtype.size == 2 else mx.uint32))


def put(slab: npt.NDArray[Any], new: npt.NDArray[Any], lengths: list[int]) -> npt.NDArray[Any]:
    """A copy with new columns, behind so many of each row."""
    slab = slab.copy()
    for row, first in enumerate(lengths):
        slab[row, :, first : first + new.shape[2]] = new[row]
    return slab


@examples(50)
@given(
    seeds, types, types, shapes, st.sampled_from([4, 8]), st.sampled_from([32, 64, 128]), st.sampled_from(list(VIEWS)),
    st.sampled_from([None, *VIEWS]),
)  # fmt: skip
def test_attention_that_writes_to_quantised_slabs_in_place(
    twin: ModuleType, seed: int, dtype: mx.Dtype, slab_type: mx.Dtype, shape: tuple[int, int, int, int, int, int],
    bits: int, group_size: int, view: str, scale_view: str | None,
) -> None:  # fmt: skip
    rows, group, kv_heads, tokens, size, before = shape
    size = size // group_size * group_size or group_size
    queries = normal(seed, (rows, group * kv_heads, tokens, size), dtype)
    new = [normal(seed + i, (rows, tokens, kv_heads, size), slab_type).swapaxes(1, 2) for i in (1, 2)]
    pairs = []
    for i in (3, 4):
        numbers = normal(seed + i, (rows, kv_heads, before + tokens + 5, size), slab_type)
        parts = mx.quantize(numbers, group_size=group_size, bits=bits)
        ways = (view, *([scale_view or view] * 2))
        pairs.append([VIEWS[way](part) for way, part in zip(ways, parts, strict=True)])
    mx.eval(pairs)
    wholes = [side[0][0] for side in pairs]
    before_it = [np.array(whole) for whole in wholes]
    slabs = [[part for _, part in side] for side in pairs]
    lengths = [before * row // rows for row in range(rows)]
    expected = []
    for slab, each in zip(slabs, new, strict=True):
        added = mx.quantize(each, group_size=group_size, bits=bits)
        expected.append(put(widened(slab, group_size, bits), widened(added, group_size, bits), lengths))
    found = twin.attend_quantized_in_place(
        queries, *new, *slabs, mx.array(lengths, dtype=mx.int32), size**-0.5, group_size, bits
    )
    after = [length + tokens for length in lengths]
    agrees(found, attended(exact(queries), expected[0], expected[1], after, size**-0.5, True), dtype)
    for slab, wide in zip(slabs, expected, strict=True):
        np.testing.assert_array_equal(widened(slab, group_size, bits), wide)
    if view in GETS_MEMORY or (view == "one for all rows" and rows > 1):
        for whole, was in zip(wholes, before_it, strict=True):
            np.testing.assert_array_equal(np.array(whole), was)


NUMBERS: dict[str, Callable[[mx.array], mx.array]] = {
    "normal": lambda x: x,
    "large": lambda x: 1e3 * x,
    "small": lambda x: 1e-5 * x,
    "smaller than any step": lambda x: 1e-9 * x,
    "one in many": lambda x: mx.where(mx.arange(x.shape[3]) % 37 == 5, 100 * x, x),
    "positive": lambda x: 3 + mx.abs(x),
    "negative": lambda x: -mx.abs(x),
    "equal": lambda x: 0 * x - 0.7,
    "zeros": lambda x: 0 * x,
    "halves": lambda x: mx.round(4 * x) / 2,
}
"""Kinds of keys and values: how a group is quantised depends on its two ends, and on which is further from zero."""


@examples(60)
@given(seeds, types, st.sampled_from([4, 8]), st.sampled_from([32, 64, 128]), st.sampled_from(list(NUMBERS)))
def test_keys_and_values_are_quantised_as_mlx_does_bit_for_bit(
    twin: ModuleType, seed: int, dtype: mx.Dtype, bits: int, group_size: int, kind: str
) -> None:
    new = [NUMBERS[kind](normal(seed + i, (3, 2, 5, 128))).astype(dtype) for i in (1, 2)]
    slabs = [list(mx.quantize(mx.ones((3, 2, 16, 128), dtype), group_size=group_size, bits=bits)) for _ in new]
    before = [[bits_of(part) for part in slab] for slab in slabs]
    lengths = [0, 4, 11]
    places = mx.array(lengths, dtype=mx.int32)
    mx.eval(twin.attend_quantized_in_place(mx.ones((3, 2, 5, 128)), *new, *slabs, places, 1.0, group_size, bits))
    for slab, was, each in zip(slabs, before, new, strict=True):
        added = mx.quantize(each, group_size=group_size, bits=bits)
        for part, old, expected in zip(slab, was, added, strict=True):
            np.testing.assert_array_equal(bits_of(part), put(old, bits_of(expected), lengths))


def test_lengths_out_of_range_read_nothing_beyond_the_slab(twin: ModuleType) -> None:
    queries, slab = normal(0, (3, 2, 1, 16)), normal(1, (3, 2, 8, 16))
    lengths = mx.array([-5, 8, 2**30], dtype=mx.int32)
    found = twin.slab_attention(queries, slab, slab, lengths, 0.25)
    agrees(found, attended(exact(queries), exact(slab), exact(slab), [1, 8, 8], 0.25, True), mx.float32)


def test_what_stands_behind_a_rows_end_changes_nothing(twin: ModuleType) -> None:
    queries, slab = normal(0, (1, 2, 1, 16)), normal(1, (1, 2, 8, 16))
    spoilt = mx.concatenate([slab[:, :, :3], mx.full((1, 2, 5, 16), mx.nan)], axis=2)
    lengths = mx.array([3], dtype=mx.int32)
    expected = exact(twin.slab_attention(queries, slab, slab, lengths, 0.25))
    agrees(twin.slab_attention(queries, spoilt, spoilt, lengths, 0.25), expected, mx.float32)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("columns", [1, 40, 700])
@pytest.mark.parametrize("tokens", [1, 7, 40, 600])
def test_what_is_not_finite_shows_in_what_attends_to_it(
    twin: ModuleType, tokens: int, columns: int, value: float
) -> None:
    """A score that is NaN or +inf makes the answers that see it NaN; one of -inf is a weight of zero, as in MLX."""
    columns = max(columns, tokens)
    place = columns - tokens
    queries = mx.abs(normal(0, (1, 2, tokens, 16)))
    keys, values = normal(1, (1, 1, columns, 16)), normal(2, (1, 1, columns, 16))
    keys[0, 0, place, 3] = value
    lengths = mx.array([columns], dtype=mx.int32)
    for found in (
        twin.attention(queries, keys, values, 0.25, True),
        twin.slab_attention(queries, keys, values, lengths, 0.25),
    ):
        finite = mx.isfinite(found)
        if value != float("-inf") or columns == 1:
            assert not mx.any(finite).item()
        else:
            # A query that sees nothing but this one has no answer.
            assert mx.all(finite[:, :, 0 if place > 0 else 1 :]).item()
    spoilt = mx.array(queries)
    spoilt[0, 1, tokens - 1, 5] = value
    keys[0, 0, place, 3] = 0.0
    finite = mx.isfinite(twin.attention(spoilt, keys, values, 0.25, True))
    assert mx.all(finite[0, 0]).item()
    assert mx.all(finite[0, 1, : tokens - 1]).item()
    assert not mx.any(finite[0, 1, tokens - 1]).item()
