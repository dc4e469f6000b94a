"""Both twins of every kernel."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType

import mlx.core as mx
import pytest

from mlx_serving.native import kernel_choice


@pytest.fixture(scope="module", params=["pure", "scalar", "avx2", "avx512", "avx512_vnni", "neon"])
def twin(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The pure twin, and the native one with each instruction set."""
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    if request.param == "pure":
        yield importlib.import_module("mlx_serving.native.kernels.pure")
    elif kernel_choice.plan().choice == "pure":
        pytest.skip("the native kernels are not built here")
    else:
        module = importlib.import_module("mlx_serving.native._kernels")
        chosen = module.instructions()
        if not module.use_instructions(request.param):
            pytest.skip(f"this processor has no {request.param}")
        yield module
        module.use_instructions(chosen)
    mx.set_default_device(before)
