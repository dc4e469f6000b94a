"""All but attention: one body for both twins, against references in float64, in every instruction set here."""

from __future__ import annotations

import importlib
import shutil
import subprocess
from collections.abc import Callable
from types import ModuleType

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.kernel_checks import BOUNDS, TYPES, agrees, exact, examples, normal, seeds, strided, types

from mlx_serving.native import kernel_choice


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
