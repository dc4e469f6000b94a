"""One test body for both twins of the accelerator."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest


@pytest.fixture(scope="session", params=["pure", "_accelerator"])
def twin(request: pytest.FixtureRequest) -> ModuleType:
    try:
        return importlib.import_module(f"mlx_serving.native.{request.param}")
    except ModuleNotFoundError:
        pytest.skip("the native module is not built here")
