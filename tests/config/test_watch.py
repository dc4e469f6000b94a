from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Queue

import pytest
from structlog.testing import capture_logs

from mlx_serving.config.load import load_settings
from mlx_serving.config.schema import Settings
from mlx_serving.config.watch import Change, SettingsWatcher

DEADLINE = 60.0


def watcher(home: Path) -> SettingsWatcher:
    return SettingsWatcher(Settings(), lambda: load_settings(home=home), home)


def write(home: Path, text: str) -> None:
    (home / "new.yaml").write_text(text, encoding="utf-8")
    (home / "new.yaml").rename(home / "runtime.yaml")


def test_live_settings_are_taken_over_and_others_wait_for_a_restart(tmp_path: Path) -> None:
    watching = watcher(tmp_path)
    write(tmp_path, "qos: {slo: {queue_p95: 1.5}}\nhttp: {port: 1}")
    change = watching.check()
    assert change is not None
    assert change.applied == ("qos.slo.queue_p95",)
    assert change.restart == ("http.port",)
    assert change.settings.qos.slo.queue_p95 == 1.5
    assert change.settings.http.port == 8080
    assert watching.check() is None


def test_a_setting_that_leaves_the_file_is_its_default_again(tmp_path: Path) -> None:
    watching = watcher(tmp_path)
    write(tmp_path, "qos: {slo: {queue_p95: 1.5}}")
    watching.check()
    write(tmp_path, "")
    change = watching.check()
    assert change is not None
    assert change.settings == Settings()


def test_an_invalid_file_is_logged_once_and_the_old_settings_stay(tmp_path: Path) -> None:
    watching = watcher(tmp_path)
    write(tmp_path, "qos: {slo: {queue_p95: soon}}")
    with capture_logs() as lines:
        assert watching.check() is None
        assert watching.check() is None
    assert [line["log_level"] for line in lines] == ["error"]
    assert "qos.slo.queue_p95" in lines[0]["reason"]
    write(tmp_path, "qos: {slo: {queue_p95: 3}}")
    change = watching.check()
    assert change is not None
    assert change.settings.qos.slo.queue_p95 == 3.0


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Queue[Change]]:
    """Changes of a file that a thread watches."""
    changes: Queue[Change] = Queue()
    stop = threading.Event()

    def run() -> None:
        for change in watcher(tmp_path).changes(stop):
            changes.put(change)

    thread = threading.Thread(target=run)
    thread.start()
    yield changes
    stop.set()
    thread.join(DEADLINE)
    assert not thread.is_alive()


def test_an_edit_of_the_file_arrives(tmp_path: Path, watched: Queue[Change]) -> None:
    write(tmp_path, "batching: {ageing_seconds: 7}")
    assert watched.get(timeout=DEADLINE).settings.batching.ageing_seconds == 7.0
    write(tmp_path, "batching: {ageing_seconds: 8}")
    assert watched.get(timeout=DEADLINE).settings.batching.ageing_seconds == 8.0


def test_looking_again_does_not_read_the_types_of_the_settings_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching = watcher(tmp_path)
    assert watching.check() is None
    monkeypatch.setattr("typing.get_type_hints", lambda cls: pytest.fail(f"the types of {cls} are read again"))
    write(tmp_path, "qos: {slo: {queue_p95: 1.5}}")
    assert watching.check() is not None
