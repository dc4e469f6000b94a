"""Where the host writes masks, and how they get to the device.

What the host has written, CUDA fetches page by page at the first access, in the middle of a kernel: 0.6 ms for the
masks of eight rows on an H200. Memory that stays with the host is read over the bus in 0.02 ms; the driver is asked to
let it stay. There the masks of all steps are written to the same array, which is copied on the device; elsewhere each
step's are copied as they are handed over.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_serving.actors.generation.guidance.masks import Masks, new_masks
from mlx_serving.actors.generation.mlx_engine.device import back_end
from mlx_serving.actors.generation.mlx_engine.host_memory import stay_with_host


class MaskBuffer:
    """Masks of up to any number of rows. Those of a step must have been used when the next ones are written."""

    def __init__(self, vocab_size: int, stays_with_host: bool | None = None) -> None:
        """`stays_with_host`: whether the device reads what the host wrote; by default on CUDA."""
        self._vocab_size = vocab_size
        self._is_shared = back_end() == "cuda" if stays_with_host is None else stays_with_host
        self._array: mx.array | None = None
        self._words = new_masks(0, vocab_size)

    def of(self, rows: int) -> Masks:
        """[rows, words], to be written."""
        if len(self._words) < rows:
            self._words = new_masks(1 << (rows - 1).bit_length(), self._vocab_size)
            if self._is_shared:
                self._array = mx.array(self._words)
                mx.eval(self._array)
                self._words = np.array(self._array, copy=False)
                stay_with_host(self._words)
        return self._words[:rows]

    def on_device(self, rows: int) -> mx.array:
        """What was written to the first rows, [rows, words]."""
        return mx.array(self._words[:rows]) if self._array is None else self._array[:rows] + 0
