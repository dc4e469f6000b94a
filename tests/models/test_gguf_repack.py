"""Repacked blocks mean the same numbers, whatever bytes they hold."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_serving.actors.models.gguf_repack import GROUP_SIZE, REPACKED, pack

ROWS, BLOCKS = 2, 2


@pytest.mark.parametrize("kind", list(REPACKED), ids=lambda kind: kind.name)
@given(seed=st.integers(0, 2**32 - 1), exponent=st.integers(-14, 4))
@settings(max_examples=30, deadline=None)
def test_codes_scales_and_biases_give_the_dequantised_numbers(kind: Kind, seed: int, exponent: int) -> None:
    size = gguf.GGML_QUANT_SIZES[kind][1]
    random = np.random.default_rng(seed)
    raw = random.integers(0, 256, (ROWS, BLOCKS, size), dtype=np.uint8)
    two_floats = kind in (Kind.Q4_1, Kind.Q5_1, Kind.Q4_K, Kind.Q5_K)
    for at in (0, 2) if two_floats else (0,):
        halves = np.ldexp(random.uniform(-1, 1, (ROWS, BLOCKS, 1)), exponent).astype("<f2")
        raw[:, :, at : at + 2] = halves.view(np.uint8)
    raw = raw.reshape(ROWS, -1)
    groups = REPACKED[kind].unpack(raw)
    scales = np.repeat(groups.scales.astype(np.float64), GROUP_SIZE, axis=1)
    biases = np.repeat(groups.biases.astype(np.float64), GROUP_SIZE, axis=1)
    meant = (scales * groups.codes + biases).astype(np.float32)
    expected = gguf.quants.dequantize(raw, kind)
    if REPACKED[kind].exact:
        np.testing.assert_array_equal(meant, expected)
    else:
        np.testing.assert_allclose(meant, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("kind", list(REPACKED), ids=lambda kind: kind.name)
def test_repacked_blocks_are_what_mlx_dequantises(kind: Kind) -> None:
    import mlx.core as mx

    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(3).integers(0, 64, (3, 256 // block * size), dtype=np.uint8)
    groups, bits = REPACKED[kind].unpack(raw), REPACKED[kind].bits
    scales, biases = mx.array(groups.scales.astype(np.float32)), mx.array(groups.biases.astype(np.float32))
    values = np.array(mx.dequantize(mx.array(pack(groups.codes, bits)), scales, biases, GROUP_SIZE, bits))
    expected = gguf.quants.dequantize(raw, kind)
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@given(bits=st.sampled_from([2, 3, 4, 5, 6, 8]), groups=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_codes_of_any_width_survive_packing(bits: int, groups: int, seed: int) -> None:
    import mlx.core as mx

    codes = np.random.default_rng(seed).integers(0, 2**bits, (3, 32 * groups), dtype=np.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (3, groups * bits)
    one, zero = mx.ones((3, groups)), mx.zeros((3, groups))
    np.testing.assert_array_equal(np.array(mx.dequantize(mx.array(packed), one, zero, 32, bits)), codes)
