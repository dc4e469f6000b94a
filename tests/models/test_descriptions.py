"""A model folder is read once, and again after any change to its files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from mlx_serving.actors.errors import ModelLoadFailed
from mlx_serving.actors.models import descriptions
from mlx_serving.actors.models.descriptions import Descriptions
from mlx_serving.actors.models.metadata import describe_folder
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.actors.models.store import ModelStore


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were read, in order."""
    read: list[Path] = []

    def reading(folder: Path, name: str, source: str) -> ModelRecord:
        read.append(folder)
        return describe_folder(folder, name, source)

    monkeypatch.setattr(descriptions, "describe_folder", reading)
    return read


def test_a_folder_is_read_once_whatever_it_is_called(folder: Path, readings: list[Path]) -> None:
    known = Descriptions()
    first = known.of(folder, "one", "here")
    assert first == describe_folder(folder, "one", "here")
    assert known.of(folder, "two", "there") == attrs.evolve(first, name="two", source="there")
    assert readings == [folder]


def shorten_context(folder: Path) -> None:
    """With a text as long as the one before, and the time at which that was written."""
    path = folder / "config.json"
    before, text = path.stat(), path.read_text()
    context = json.loads(text)["max_position_embeddings"]
    path.write_text(text.replace(str(context), str(context - 1)))
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_config(folder: Path) -> None:
    (folder / "other.json").write_text((folder / "config.json").read_text().replace("512", "511"))
    (folder / "other.json").replace(folder / "config.json")


def add_a_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "tokenizer_config.json").write_text("{}")


@pytest.mark.parametrize("change", [shorten_context, replace_config, add_a_template])
def test_it_is_read_again_after_a_change(folder: Path, readings: list[Path], change: Callable[[Path], None]) -> None:
    known = Descriptions()
    before = known.of(folder, "name", "source")
    change(folder)
    after = known.of(folder, "name", "source")
    assert after == describe_folder(folder, "name", "source") != before
    assert known.of(folder, "name", "source") == after
    assert len(readings) == 2


def test_it_is_read_again_after_a_change_behind_a_link(folder: Path, tmp_path: Path, readings: list[Path]) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in folder.iterdir():
        (linked / path.name).symlink_to(path)
    known = Descriptions()
    before = known.of(linked, "name", "source")
    shorten_context(folder)
    assert known.of(linked, "name", "source").context_length == before.context_length - 1


def test_what_is_wrong_with_a_folder_is_found_again_until_it_is_mended(folder: Path, readings: list[Path]) -> None:
    known = Descriptions()
    whole = known.of(folder, "name", "source")
    (folder / "tokenizer.json").rename(folder / "elsewhere")
    for _ in range(2):
        with pytest.raises(ModelLoadFailed):
            known.of(folder, "name", "source")
    (folder / "elsewhere").rename(folder / "tokenizer.json")
    assert known.of(folder, "name", "source") == whole
    assert len(readings) == 4


def test_a_store_lists_its_models_without_reading_them_again(
    tiny_folder: Path, home: Path, readings: list[Path]
) -> None:
    models = ModelStore(home)
    for name in ("one", "two"):
        shutil.copytree(tiny_folder, models.folder / name)
    listed = models.list()
    assert [record.name for record in listed] == ["one", "two"]
    assert models.list() == listed
    assert models.show("one") == models.resolve("one") == listed[0]
    assert len(readings) == 2
    shutil.rmtree(models.folder / "one")
    shutil.copytree(tiny_folder, models.folder / "three")
    assert [record.name for record in models.list()] == ["three", "two"]
    assert len(readings) == 3
