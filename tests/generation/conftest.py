"""Engines on small random models and on the real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mlx_serving.actors.models.record import ModelRecord

if TYPE_CHECKING:
    from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> ModelRecord:
    from support.tiny_models import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture
def tiny(tiny_llama: ModelRecord) -> Iterator[MlxEngine]:
    """A loaded engine of a small random llama, eight rows at most."""
    from support.engines import loaded

    engine = loaded(tiny_llama)
    yield engine
    engine.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a model may be written."""
    return tmp_path / "model"
