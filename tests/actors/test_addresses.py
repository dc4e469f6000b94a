"""How live commands find a server, where several come and go on one home."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_serving.actors.addresses import announce, door_of, sweep, urls_of, withdraw


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path


@pytest.fixture
def other(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another server, whose process is the parent of this one."""
    with monkeypatch.context() as there:
        there.setattr(os, "getpid", os.getppid)
        announce(home, "ipc://other", ("http://127.0.0.1:1",))


@pytest.fixture
def dead(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The announcement of a server that was killed."""
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    with monkeypatch.context() as there:
        there.setattr(os, "getpid", lambda: killed.pid)
        announce(home, "ipc://dead", ())
    return home / "run" / f"server-{killed.pid}.json"


def test_the_server_that_came_last_is_found(home: Path, other: None) -> None:
    announce(home, "ipc://mine", ("http://127.0.0.1:2",))
    assert (door_of(home), urls_of(home)) == ("ipc://mine", ("http://127.0.0.1:2",))


def test_when_the_last_one_goes_the_one_before_is_found_again(home: Path, other: None) -> None:
    announce(home, "ipc://mine", ())
    withdraw(home)
    assert (door_of(home), urls_of(home)) == ("ipc://other", ("http://127.0.0.1:1",))


def test_a_server_that_was_killed_is_not_found_and_swept(home: Path, dead: Path) -> None:
    assert door_of(home) is None
    sweep(home)
    assert not dead.exists()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"pid": 1}', '{"pid": "x", "door": "d", "urls": [], "since": 0}'])
def test_a_damaged_announcement_is_none(home: Path, text: str) -> None:
    (home / "run" / "server-1.json").write_text(text)
    assert door_of(home) is None
    sweep(home)
