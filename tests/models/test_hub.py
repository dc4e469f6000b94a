"""Models come from a Hugging Face hub, here one that a local server plays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.file_server import COMMIT, FileServer, hub_files
from support.pulls import Interrupted, Phases

from mlx_serving.actors.errors import ModelLoadFailed, ModelNotFound
from mlx_serving.actors.models import download
from mlx_serving.actors.models.store import ModelStore

REPOSITORY = "org/tiny"
WEIGHTS = f"/{REPOSITORY}/resolve/{COMMIT}/model.safetensors"


@pytest.fixture
def hub(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    files = {path.name: path.read_bytes() for path in tiny_folder.iterdir()}
    files |= {"README.md": b"# Tiny", "modeling_tiny.py": b"raise SystemExit", "pytorch_model.bin": b"pickle"}
    monkeypatch.setattr(download, "PIECE_BYTES", 4096)
    with FileServer(hub_files(REPOSITORY, files)) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def test_a_repository_becomes_a_stored_model(hub: FileServer, models: ModelStore, phases: Phases) -> None:
    record = models.pull(REPOSITORY, phases)
    assert set(phases.seen) == {"locate", "download", "verify"}
    assert record == models.show(REPOSITORY) == models.resolve(REPOSITORY)
    assert (record.name, record.source, record.path.name) == (REPOSITORY, REPOSITORY, "org--tiny")
    assert models.list() == [record]
    names = {path.name for path in record.path.iterdir()}
    assert names.isdisjoint({"README.md", "modeling_tiny.py", "pytorch_model.bin", ".cache"})
    models.remove(REPOSITORY)
    assert models.list() == []


def test_an_interrupted_download_goes_on_where_it_stopped(hub: FileServer, models: ModelStore) -> None:
    size = len(hub.files[WEIGHTS])

    def stop(phase: str, done: int, total: int | None) -> None:
        if done > size // 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        models.pull(REPOSITORY, stop)
    assert models.list() == []
    record = models.pull(REPOSITORY)
    assert (record.path / "model.safetensors").read_bytes() == hub.files[WEIGHTS]
    first, second = hub.ranges(WEIGHTS)
    assert first is None
    assert second is not None


def test_a_file_with_another_digest_is_not_taken(hub: FileServer, models: ModelStore) -> None:
    hub.files[WEIGHTS] = hub.files[WEIGHTS][::-1]
    with pytest.raises(ModelLoadFailed, match="SHA-256"):
        models.pull(REPOSITORY)
    assert models.list() == []


def test_a_file_that_would_leave_the_folder_is_not_fetched(
    tiny_folder: Path, models: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path.read_bytes() for path in tiny_folder.iterdir()}
    outside = {"../../x.json": b"{}", "/tmp/x.json": b"{}", "a/b.json": b"{}", ".x.json": b"{}"}
    with FileServer(hub_files(REPOSITORY, {**outside, **files})) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        record = models.pull(REPOSITORY)
    assert {path.name for path in record.path.iterdir()} == {*files, "mlx-serving.json"}


def test_an_unknown_repository_is_not_found(hub: FileServer, models: ModelStore) -> None:
    with pytest.raises(ModelNotFound, match="check the name or log in"):
        models.pull("org/unknown")
    assert models.list() == []


def test_a_hub_that_cannot_be_reached_is_said(models: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelLoadFailed, match="the hub cannot be asked for org/tiny"):
        models.pull(REPOSITORY)


def test_a_repository_without_safetensors_is_pointed_to_import(
    models: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FileServer(hub_files("org/gguf", {"model.gguf": b"GGUF", "config.json": b"{}"})) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        with pytest.raises(ModelLoadFailed, match="GGUF file can be downloaded and imported"):
            models.pull("org/gguf")
