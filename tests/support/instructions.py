"""The native kernels in each of their instruction sets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mlx_serving.native import kernels

SETS = ("scalar", "avx2", "avx512", "avx512_vnni", "neon")


@contextmanager
def using(instructions: str) -> Iterator[None]:
    """Kernels run with these. Skips the test where there are no kernels, or this processor lacks them."""
    if kernels.choice.choice == "pure":
        pytest.skip("the native kernels are not built here")
    before = kernels.operations.instructions()
    if not kernels.operations.use_instructions(instructions):
        pytest.skip(f"this processor has no {instructions}")
    try:
        yield
    finally:
        kernels.operations.use_instructions(before)
