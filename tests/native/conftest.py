"""What several tests of the accelerator need."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType

import mlx.core as mx
import pytest


@pytest.fixture(scope="session", params=["pure", "_accelerator"])
def twin(request: pytest.FixtureRequest) -> ModuleType:
    """One test body for both twins of the accelerator."""
    try:
        return importlib.import_module(f"mlx_serving.native.{request.param}")
    except ModuleNotFoundError:
        pytest.skip("the native module is not built here")


@pytest.fixture
def on_the_cpu() -> Iterator[None]:
    """MLX computes on the CPU, whatever else this machine has."""
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)
