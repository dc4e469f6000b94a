"""What the memory gives."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_BYTES, _TRIES = 256 << 20, 5


def bandwidth(threads: int) -> float:
    """Bytes a second that so many threads read from memory; the best of five."""
    parts = [np.ones(_BYTES // 8, dtype=np.int64) for _ in range(threads)]
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_TRIES):
            start = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, parts))
            best = min(best, time.perf_counter() - start)
    return sum(part.nbytes for part in parts) / best
