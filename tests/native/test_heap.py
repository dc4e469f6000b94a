"""Memory that was freed goes back to the system where the C library can be asked to."""

from __future__ import annotations

import ctypes
import platform

import psutil
import pytest

from mlx_serving.native import heap


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the call")
def test_what_was_freed_behind_a_live_block_is_returned() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    blocks = [libc.malloc(100_000) for _ in range(1000)]
    for block in blocks:
        ctypes.memset(block, 1, 100_000)
    full = psutil.Process().memory_info().rss
    for block in blocks[:-1]:
        libc.free(block)
    assert heap.trim()
    assert psutil.Process().memory_info().rss < full - 80_000_000
    libc.free(blocks[-1])


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_malloc_trim", lambda: None)
    assert not heap.trim()
