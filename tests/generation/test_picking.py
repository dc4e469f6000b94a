"""Picking elements by index, and the buffer that masks are written to."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_serving.actors.generation.mlx_engine import picking
from mlx_serving.actors.generation.mlx_engine.mask_buffer import MaskBuffer


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7)])
def test_it_picks_what_take_along_axis_does(shape: tuple[int, ...]) -> None:
    values = mx.random.normal(shape, key=mx.random.key(1))
    places = mx.random.randint(0, 7, (*shape[:-1], 4), key=mx.random.key(2))
    expected = mx.take_along_axis(values, places, axis=-1)
    np.testing.assert_array_equal(np.array(picking.along_last(values, places)), np.array(expected))


@pytest.mark.parametrize("stays_with_host", [False, True])
def test_masks_arrive_as_they_were_written_last(stays_with_host: bool) -> None:
    buffer = MaskBuffer(100, stays_with_host)
    for rows in (1, 3, 2, 9):
        words = buffer.of(rows)
        assert words.shape == (rows, 4)
        words[:] = np.arange(rows * 4, dtype=np.uint32).reshape(rows, 4) + rows
        np.testing.assert_array_equal(np.array(buffer.on_device(rows)), words)
