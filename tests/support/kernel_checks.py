"""How tests of the kernels compare: against references in float64, bounds relative to the largest result.

1e-5 for sums in float32, 2e-3 and 1.6e-2 where results are rounded to float16 and bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

Floats = npt.NDArray[np.float64]
TYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
BOUNDS = {mx.float32: 1e-5, mx.float16: 2e-3, mx.bfloat16: 1.6e-2}
types = st.sampled_from(list(TYPES.values()))
seeds = st.integers(0, 2**31)


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
