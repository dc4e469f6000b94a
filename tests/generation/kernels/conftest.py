"""GPUs that are none: see `support.gpu_kernels`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.gpu_kernels import HAS_COMPILER
from support.shims import Shims, forget


@pytest.fixture(scope="session")
def kernel_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not HAS_COMPILER:
        pytest.skip("there is no g++")
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture
def shims(kernel_folder: Path) -> Iterator[Shims]:
    yield Shims(kernel_folder)
    forget()
