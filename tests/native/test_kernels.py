"""One body for both twins of every kernel: against references in float64, in every instruction set of this machine.

Bounds are relative to the largest result: 1e-5 for sums in float32, 2e-3 and 1.6e-2 where results are rounded to
float16 and bfloat16.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_serving.native import kernel_choice

Floats = npt.NDArray[np.float64]
TYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
BOUNDS = {mx.float32: 1e-5, mx.float16: 2e-3, mx.bfloat16: 1.6e-2}
types = st.sampled_from(list(TYPES.values()))
seeds = st.integers(0, 2**31)


@pytest.fixture(scope="module", params=["pure", "scalar", "avx2", "avx512", "avx512_vnni", "neon"])
def twin(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The pure twin, and the native one with each instruction set."""
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    if request.param == "pure":
        yield importlib.import_module("mlx_serving.native.kernels.pure")
    elif kernel_choice.plan().choice == "pure":
        pytest.skip("the native kernels are not built here")
    else:
        module = importlib.import_module("mlx_serving.native._kernels")
        chosen = module.instructions()
        if not module.use_instructions(request.param):
            pytest.skip(f"this processor has no {request.param}")
        yield module
        module.use_instructions(chosen)
    mx.set_default_device(before)


def test_nothing_of_an_instruction_set_runs_when_the_library_is_loaded() -> None:
    """A processor that has it not would end the process there."""
    if shutil.which("nm") is None or kernel_choice.plan().choice == "pure":
        pytest.skip("there is no nm, or no library, here")
    library = str(importlib.import_module("mlx_serving.native._kernels").__file__)
    symbols = subprocess.run(["nm", library], capture_output=True, text=True, check=True).stdout
    if not symbols:
        pytest.skip("the library's symbols were stripped")
    assert "multiply_panel" in symbols or "avx512" not in symbols
    assert "_GLOBAL__sub_I_kernels_" not in symbols


def examples(count: int) -> Callable[[Any], Any]:
    return settings(max_examples=count, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def exact(array: mx.array) -> Floats:
    return np.array(array.astype(mx.float32), dtype=np.float64)


def normal(seed: int, shape: tuple[int, ...], dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


def strided(seed: int, shape: tuple[int, ...], dtype: mx.Dtype, kind: int) -> mx.array:
    """The same numbers in another order of memory: as they are, from a wider array, or transposed."""
    if kind == 0:
        return normal(seed, shape, dtype)
    if kind == 1:
        return normal(seed, (*shape[:-1], shape[-1] + 3), dtype)[..., 1:-2]
    return normal(seed, (*shape[:-2], shape[-1], shape[-2]), dtype).swapaxes(-1, -2)


def agrees(found: mx.array, expected: Floats, dtype: mx.Dtype, bound: float | None = None) -> None:
    assert found.dtype == dtype
    assert found.shape == expected.shape
    worst = np.max(np.abs(exact(found) - expected), initial=0.0)
    largest = np.max(np.abs(expected), initial=1e-3)
    assert worst <= (bound or BOUNDS[dtype]) * largest, f"{worst / largest:.2g} of the largest"


@examples(60)
@given(
    seeds, st.sampled_from([2, 3, 4, 5, 6, 8]), st.sampled_from([32, 64, 128]), st.integers(1, 9), types, types,
    st.integers(1, 40), st.integers(1, 70), st.integers(0, 2),
)  # fmt: skip
def test_quantised_products(
    twin: ModuleType, seed: int, bits: int, group: int, groups: int, dtype: mx.Dtype, scale_type: mx.Dtype, rows: int,
    columns: int, kind: int,
) -> None:  # fmt: skip
    weight, scales, biases = mx.quantize(normal(seed, (columns, group * groups)), group_size=group, bits=bits)
    scales, biases = scales.astype(scale_type), biases.astype(scale_type)
    wide = mx.dequantize(weight, scales.astype(mx.float32), biases.astype(mx.float32), group_size=group, bits=bits)
    x = strided(seed + 1, (rows, group * groups), dtype, kind)
    found = twin.quantized_matmul(x, weight, scales, biases, group, bits)
    agrees(found, exact(x) @ exact(wide).T, dtype)


@examples(60)
@given(
    seeds, st.sampled_from([4, 5, 6, 8]), st.sampled_from([32, 64, 128]), st.integers(1, 9), types, types,
    st.integers(1, 40), st.integers(1, 4), st.sampled_from([1e-20, 1.0, 1e20]),
)  # fmt: skip
def test_products_with_panels(
    twin: ModuleType, seed: int, bits: int, group: int, groups: int, dtype: mx.Dtype, scale_type: mx.Dtype, rows: int,
    panels: int, size: float,
) -> None:  # fmt: skip
    if twin.__name__.endswith("_kernels") and not twin.takes_panels():
        pytest.skip("these instructions have no products with panels")
    weight, scales, biases = mx.quantize(normal(seed, (32 * panels, group * groups)), group_size=group, bits=bits)
    scales, biases = scales.astype(scale_type), biases.astype(scale_type)
    wide = mx.dequantize(weight, scales.astype(mx.float32), biases.astype(mx.float32), group_size=group, bits=bits)
    # Of half precision only what it can hold; one column far above the others, as activations have them.
    factor = size if dtype == mx.float32 else 1.0
    x = normal(seed + 1, (rows, group * groups)) * factor
    x = mx.where(mx.arange(x.shape[1]) == seed % x.shape[1], 50 * x, x).astype(dtype)
    parts = (twin.digits_to_panels(weight, bits), twin.to_panels(scales), twin.to_panels(biases))
    found = twin.quantized_matmul(x, *parts, group, bits)
    agrees(found / factor, exact(x) / factor @ exact(wide).T, dtype)


@examples(20)
@given(seeds, st.integers(0, 95), st.sampled_from([float("nan"), float("inf"), float("-inf")]))
def test_what_is_not_finite_stays_so_in_its_row_of_panels(
    twin: ModuleType, seed: int, place: int, value: float
) -> None:
    if twin.__name__.endswith("_kernels") and not twin.takes_panels():
        pytest.skip("these instructions have no products with panels")
    parts = map(twin.to_panels, mx.quantize(normal(seed, (32, 96)), group_size=32, bits=4))
    x = normal(seed + 1, (3, 96))
    x[1, place] = value
    finite = mx.isfinite(twin.quantized_matmul(x, *parts, 32, 4))
    assert mx.all(finite, axis=1).tolist() == [True, False, True]
    assert not mx.any(finite[1]).item()


@examples(20)
@given(st.integers(1, 5), st.integers(1, 70), st.sampled_from([mx.uint32, *TYPES.values()]))
def test_panels_are_rows_side_by_side(twin: ModuleType, panels: int, columns: int, dtype: mx.Dtype) -> None:
    matrix = mx.arange(32 * panels * columns).reshape(columns, -1).astype(dtype).T
    found = twin.to_panels(matrix)
    assert found.shape == (panels, columns, 32)
    assert mx.array_equal(found, matrix.reshape(panels, 32, columns).swapaxes(1, 2)).item()
    pure = importlib.import_module("mlx_serving.native.kernels.pure")
    assert mx.array_equal(pure.from_panels(found), matrix).item()


@examples(20)
@given(seeds, st.sampled_from([4, 5, 6, 8]), st.integers(1, 3), st.integers(1, 5))
def test_digits_go_to_panels_and_back(twin: ModuleType, seed: int, bits: int, panels: int, groups: int) -> None:
    weight = mx.quantize(normal(seed, (32 * panels, 32 * groups)), group_size=32, bits=bits)[0]
    pure = importlib.import_module("mlx_serving.native.kernels.pure")
    found = twin.digits_to_panels(weight, bits)
    assert mx.array_equal(found, pure.digits_to_panels(weight, bits)).item()
    assert mx.array_equal(pure.digits_from_panels(found, bits), weight).item()
    if bits in (5, 6):
        ones, zeros = mx.ones((32 * panels, groups)), mx.zeros((32 * panels, groups))
        digits = mx.dequantize(weight, ones, zeros, group_size=32, bits=bits)
        assert mx.array_equal(pure.digits_of(pure.from_panels(found), bits), digits).item()


@examples(60)
@given(
    seeds, types, types, st.integers(1, 40), st.integers(1, 70), st.integers(1, 300), st.integers(0, 2),
    st.integers(0, 2),
)  # fmt: skip
def test_dense_products(
    twin: ModuleType, seed: int, dtype: mx.Dtype, weight_type: mx.Dtype, rows: int, columns: int, depth: int, kind: int,
    weight_kind: int,
) -> None:  # fmt: skip
    x, weight = strided(seed, (rows, depth), dtype, kind), strided(seed + 1, (columns, depth), weight_type, weight_kind)
    agrees(twin.matmul(x, weight), exact(x) @ exact(weight).T, dtype)


@pytest.mark.parametrize("rows", [1, 2, 4, 6, 7, 8, 13, 20])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("depth", [2047, 7001])
def test_dense_products_read_in_blocks_of_short_and_of_long_rows(
    twin: ModuleType, rows: int, dtype: mx.Dtype, depth: int
) -> None:
    x, weight = normal(rows, (rows, depth)), normal(depth, (45, depth)).astype(dtype)
    agrees(twin.matmul(x, weight), exact(x) @ exact(weight).T, mx.float32)


@examples(40)
@given(seeds, types, types, st.integers(1, 5), st.integers(1, 700), st.integers(0, 2), st.booleans())
def test_norms(
    twin: ModuleType, seed: int, dtype: mx.Dtype, weight_type: mx.Dtype, rows: int, size: int, kind: int, weighted: bool
) -> None:
    x = strided(seed, (rows, size), dtype, kind)
    weight, bias = (normal(seed + i, (size,), weight_type) if weighted else None for i in (1, 2))
    values = exact(x)
    scale = exact(weight) if weight is not None else 1.0
    shift = exact(bias) if bias is not None else 0.0
    result = dtype if weight is None or dtype == weight_type else mx.float32
    by_square = values / np.sqrt(np.mean(values**2, axis=-1, keepdims=True) + 1e-3) * scale
    agrees(twin.rms_norm(x, weight, 1e-3), by_square, result)
    centred = values - np.mean(values, axis=-1, keepdims=True)
    by_variance = centred / np.sqrt(np.var(values, axis=-1, keepdims=True) + 1e-3) * scale + shift
    agrees(twin.layer_norm(x, weight, bias, 1e-3), by_variance, result)


@examples(40)
@given(seeds, types, st.integers(1, 5), st.integers(1, 300), st.integers(0, 2))
def test_gates(twin: ModuleType, seed: int, dtype: mx.Dtype, rows: int, size: int, kind: int) -> None:
    gate, x = strided(seed, (rows, size), dtype, kind) * 8, normal(seed + 1, (rows, size), dtype)
    gates, values = exact(gate), exact(x)
    agrees(twin.swiglu(gate, x), gates / (1 + np.exp(-gates)) * values, dtype)
    inner = np.sqrt(2 / np.pi) * (gates + 0.044715 * gates**3)
    agrees(twin.geglu(gate, x), 0.5 * gates * (1 + np.tanh(inner)) * values, dtype)


@examples(40)
@given(
    seeds, types, st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(1, 40), st.integers(0, 20),
    st.booleans(), st.booleans(), st.booleans(), st.integers(0, 4000),
)  # fmt: skip
def test_rotations(
    twin: ModuleType, seed: int, dtype: mx.Dtype, rows: int, heads: int, tokens: int, half: int, rest: int,
    traditional: bool, given_freqs: bool, each: bool, start: int,
) -> None:  # fmt: skip
    x = normal(seed, (rows, tokens, heads, 2 * half + rest), dtype).swapaxes(1, 2)
    starts = [start + 7 * row if each else start for row in range(rows)]
    offset = mx.array(starts if each else start, dtype=mx.int32)
    freqs = mx.random.uniform(1, 50, (half,), key=mx.random.key(seed)) if given_freqs else None
    radians = 1 / exact(freqs) if freqs is not None else 10000.0 ** (-np.arange(half) / half)
    angles = (np.array(starts)[:, None] + np.arange(tokens))[:, None, :, None] * radians
    values = exact(x)
    parts = (values[..., 0 : 2 * half : 2], values[..., 1 : 2 * half : 2])
    if not traditional:
        parts = (values[..., :half], values[..., half : 2 * half])
    first = parts[0] * np.cos(angles) - parts[1] * np.sin(angles)
    second = parts[0] * np.sin(angles) + parts[1] * np.cos(angles)
    turned = np.stack([first, second], axis=-1).reshape(*first.shape[:-1], 2 * half)
    expected = np.concatenate(
        [turned if traditional else np.concatenate([first, second], axis=-1), values[..., 2 * half :]], axis=-1
    )
    found = twin.rope(x, 2 * half, traditional, None if given_freqs else 10000.0, 1.0, offset, freqs)
    # An angle in float32 is off by 2^-24 of itself: a thousandth of a radian at some ten thousand positions.
    agrees(found, expected, dtype, max(BOUNDS[dtype], 2e-3))


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


def test_empty_inputs_give_empty_results(twin: ModuleType) -> None:
    assert twin.matmul(mx.zeros((0, 8)), mx.zeros((4, 8))).shape == (0, 4)
    assert twin.rms_norm(mx.zeros((0, 8)), None, 1e-5).shape == (0, 8)
    assert twin.swiglu(mx.zeros((0, 8)), mx.zeros((0, 8))).shape == (0, 8)


def one(*shape: int) -> mx.array:
    return mx.zeros(shape)


def quantised(*shape: int) -> list[mx.array]:
    return list(mx.quantize(one(*shape), group_size=32, bits=8))


LENGTHS = mx.array([1], dtype=mx.int32)
Wrong = Callable[[ModuleType], mx.array]
WRONG: dict[str, Wrong] = {
    "depth": lambda twin: twin.matmul(one(2, 3), one(2, 4)),
    "integers": lambda twin: twin.matmul(one(2, 3).astype(mx.int32), one(2, 3)),
    "a vector as weight": lambda twin: twin.matmul(one(2, 3), one(3)),
    "bits": lambda twin: twin.quantized_matmul(one(1, 64), one(8, 8).astype(mx.uint32), one(8, 1), one(8, 1), 64, 7),
    "group": lambda twin: twin.quantized_matmul(one(1, 48), one(8, 6).astype(mx.uint32), one(8, 1), one(8, 1), 48, 4),
    "scales": lambda twin: twin.quantized_matmul(one(1, 64), one(8, 8).astype(mx.uint32), one(8, 2), one(8, 2), 64, 4),
    "rows of panels": lambda twin: twin.to_panels(one(33, 8)),
    "bits of panels": lambda twin: twin.digits_to_panels(mx.zeros((32, 12), dtype=mx.uint32), 3),
    "words of panels": lambda twin: twin.digits_to_panels(mx.zeros((32, 8), dtype=mx.uint32), 6),
    "axes": lambda twin: twin.quantized_matmul(
        one(1, 64), one(32, 8).astype(mx.uint32), one(1, 1, 32), one(1, 1, 32), 64, 4
    ),
    "matrix among panels": lambda twin: twin.quantized_matmul(
        one(1, 64), one(1, 8, 32).astype(mx.uint32), one(32, 1), one(32, 1), 64, 4
    ),
    "weight type": lambda twin: twin.quantized_matmul(one(1, 64), one(8, 8), one(8, 1), one(8, 1), 64, 4),
    "norm weight": lambda twin: twin.rms_norm(one(2, 8), one(7), 1e-5),
    "gate shape": lambda twin: twin.swiglu(one(2, 8), one(2, 7)),
    "odd rotation": lambda twin: twin.rope(one(1, 1, 1, 8), 3, False, 1e4, 1.0, mx.array(0, dtype=mx.int32), None),
    "two ways to rotate": lambda twin: twin.rope(
        one(1, 1, 1, 8), 4, False, 1e4, 1.0, mx.array(0, dtype=mx.int32), one(2)
    ),
    "offset type": lambda twin: twin.rope(one(1, 1, 1, 8), 4, False, 1e4, 1.0, mx.array(0.0), None),
    "head size": lambda twin: twin.attention(one(1, 2, 1, 8), one(1, 2, 4, 8), one(1, 2, 4, 8), 1.0, True),
    "heads": lambda twin: twin.attention(one(1, 3, 1, 16), one(1, 2, 4, 16), one(1, 2, 4, 16), 1.0, True),
    "columns": lambda twin: twin.attention(one(1, 2, 5, 16), one(1, 2, 4, 16), one(1, 2, 4, 16), 1.0, True),
    "slots": lambda twin: twin.slab_attention(
        one(2, 2, 1, 16), one(1, 2, 4, 16), one(1, 2, 4, 16), mx.array([1, 1], dtype=mx.int32), 1.0
    ),
    "new keys of another type": lambda twin: twin.attend_quantized_in_place(
        one(1, 2, 1, 32), *2 * [one(1, 2, 1, 32).astype(mx.float16)], *2 * [quantised(1, 2, 4, 32)], LENGTHS, 1.0, 32, 8
    ),
    "new keys of another shape": lambda twin: twin.attend_quantized_in_place(
        one(1, 2, 1, 32), *2 * [one(1, 2, 2, 32)], *2 * [quantised(1, 2, 4, 32)], LENGTHS, 1.0, 32, 8
    ),
    "bits of slabs": lambda twin: twin.attend_quantized_in_place(
        one(1, 2, 1, 32), *2 * [one(1, 2, 1, 32)], *2 * [quantised(1, 2, 4, 32)], LENGTHS, 1.0, 32, 4
    ),
    "parts of slabs": lambda twin: twin.attend_quantized_in_place(
        one(1, 2, 1, 32), *2 * [one(1, 2, 1, 32)], *2 * [quantised(1, 2, 4, 32)[:2]], LENGTHS, 1.0, 32, 8
    ),
    "digits in floats": lambda twin: twin.quantized_slab_attention(
        one(1, 2, 1, 32), *2 * [[one(1, 2, 4, 8), one(1, 2, 4, 1), one(1, 2, 4, 1)]], LENGTHS, 1.0, 32, 8
    ),
    "lengths": lambda twin: twin.slab_attention(
        one(1, 2, 1, 16), one(1, 2, 4, 16), one(1, 2, 4, 16), mx.array([1.0]), 1.0
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arrays_are_refused(twin: ModuleType, wrong: str) -> None:
    with pytest.raises(ValueError, match=r"must|not|fewer"):
        WRONG[wrong](twin)
