"""What several tests of the kernels need."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import pytest


@pytest.fixture
def on_the_cpu() -> Iterator[None]:
    """MLX computes on the CPU, whatever else this machine has."""
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)
