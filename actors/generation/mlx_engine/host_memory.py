"""Memory of MLX that the host writes and CUDA's device reads, which stays with the host.

What the host has written the device fetches page by page at the first access, in the middle of a kernel; and memory
that is new has to be cleared page by page before that. From memory that stays with the host and is used again a device
copies 262 MB in 6 ms on an H200, where a new array of them took 100 to be made and 31 to 67 to be fetched.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import weakref
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_serving.actors.generation.mlx_engine.device import back_end

_log = logging.getLogger(__name__)
_SET_PREFERRED_LOCATION, _SET_ACCESSED_BY, _HOST, _DEVICE = 3, 5, -1, 0
"""CU_MEM_ADVISE_SET_PREFERRED_LOCATION and _ACCESSED_BY, CU_DEVICE_CPU and the first device of the CUDA driver's
interface."""


def stay_with_host(words: NDArray[Any]) -> None:
    """Ask the driver, where there is one, to leave an array that MLX holds with the host, and to let the device read it
    there."""
    if back_end() != "cuda":
        return
    place, size = ctypes.c_uint64(words.ctypes.data), ctypes.c_size_t(words.nbytes)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        status = driver.cuMemAdvise(place, size, _SET_PREFERRED_LOCATION, _HOST)
        status = status or driver.cuMemAdvise(place, size, _SET_ACCESSED_BY, _DEVICE)
    except (OSError, AttributeError) as error:
        status = error
    if status:
        _log.warning("what the host writes reaches the device slowly: the CUDA driver does not keep it (%s)", status)


class HostStage:
    """Memory for what is on its way to the device. Any thread may take some; it is free again when nobody has it."""

    def __init__(self, nbytes: int) -> None:
        self._array = mx.array(np.zeros(nbytes, dtype=np.uint8))
        self._bytes: NDArray[np.uint8] = np.array(self._array, copy=False)
        self._is_advised = False
        # One that is given up while memory is taken, by the same thread, must not wait for itself.
        self._lock = threading.RLock()
        self._end = self._held = 0

    def take(self, nbytes: int) -> memoryview | None:
        """So much of it, or None if there is not enough. What is copied from it must be computed before it is let
        go."""
        with self._lock:
            if self._end + nbytes > len(self._bytes):
                return None
            # Made before anything that may run a finaliser of another part.
            begin, self._end, self._held = self._end, self._end + nbytes, self._held + 1
            part = self._bytes[begin : begin + nbytes]
            weakref.finalize(part, self._let_go)
        return part.data

    def on_device(self, data: memoryview) -> mx.array | None:
        """The graph of a copy [bytes] of a part that was taken; None for other memory.

        For one thread, which computes on the device.
        """
        place = np.frombuffer(data, dtype=np.uint8).ctypes.data - self._bytes.ctypes.data
        if not 0 <= place <= len(self._bytes) - data.nbytes:
            return None
        if not self._is_advised:  # by a thread that the driver knows
            stay_with_host(self._bytes)
            self._is_advised = True
        return self._array[place : place + data.nbytes] + 0

    def _let_go(self) -> None:
        with self._lock:
            self._held -= 1
            if not self._held:
                self._end = 0
