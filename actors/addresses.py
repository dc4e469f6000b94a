"""Where each actor listens.

Every actor has one inbox, bound to `ipc://RUN/NAME.sock` and, when it runs on a thread of the host, to
`inproc://NAME` as well; admission has a second end, the door, to which frontends connect. RUN is a private folder
(mode 0700) made anew for each run of a server, short enough for the path limit of Unix sockets.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import attrs

PATH_LIMIT = 103
"""Bytes in a Unix socket's path on macOS (Linux allows 107)."""

LONGEST_NAME = 24
CONTROL_ACTORS = ("supervisor", "telemetry", "qos", "batching", "admission")
DOOR = "door"


@attrs.frozen
class Endpoints:
    """The addresses of one socket; `inproc` is None for one outside the host process."""

    ipc: str
    inproc: str | None = None

    def best(self, same_process: bool) -> str:
        return self.inproc if same_process and self.inproc is not None else self.ipc


@attrs.frozen
class AddressBook:
    """The addresses of one run. `threads` names the actors that live in the host process."""

    folder: str
    threads: frozenset[str] = frozenset()

    def of(self, name: str) -> Endpoints:
        """Endpoints of an actor's inbox, or of the door. Replicas get a fresh name for every start."""
        owner = "admission" if name == DOOR else name
        inproc = f"inproc://{name}" if owner in self.threads else None
        return Endpoints(f"ipc://{self.folder}/{name}.sock", inproc)


def make_run_folder(home: Path) -> Path:
    """A private folder for this run's sockets, under `home` unless that path is too long for a Unix socket."""
    parent = home / "run"
    parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = Path(tempfile.mkdtemp(prefix="r", dir=parent))
    if len(str(folder)) + 1 + LONGEST_NAME + len(".sock") > PATH_LIMIT:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="mlx-serving-", dir="/tmp"))
    folder.chmod(0o700)
    return folder


def remove_run_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


@attrs.frozen
class _Announcement:
    """What a server lets live commands know. `since`: seconds of the system's clock."""

    pid: int
    door: str
    urls: tuple[str, ...]
    since: float


def _announcement_file(home: Path, pid: int) -> Path:
    return home / "run" / f"server-{pid}.json"


def announce(home: Path, door: str, urls: tuple[str, ...]) -> None:
    """Let live commands on this home find the server: its door, its pid, its addresses."""
    path = _announcement_file(home, os.getpid())
    announcement = _Announcement(os.getpid(), door, urls, time.time())
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(attrs.asdict(announcement)), encoding="utf-8")
    draft.replace(path)


def withdraw(home: Path) -> None:
    """Undo `announce`. Of several servers on this home the one that came before is found again."""
    _announcement_file(home, os.getpid()).unlink(missing_ok=True)


def _announced(home: Path) -> list[_Announcement]:
    """Of all servers that have not withdrawn theirs, the last one first."""
    found = []
    for path in (home / "run").glob("server-*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError):  # withdrawn just now, or not written by us
            found.append(_Announcement(**json.loads(path.read_text(encoding="utf-8"))))
    return sorted(found, key=lambda announcement: announcement.since, reverse=True)


def _running(home: Path) -> _Announcement | None:
    """Of the servers that run on this home the one that came last."""
    return next((announcement for announcement in _announced(home) if _alive(announcement.pid)), None)


def _alive(pid: object) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def door_of(home: Path) -> str | None:
    """The address of the door of the server that runs on this home; None when none does."""
    found = _running(home)
    return None if found is None else found.door


def urls_of(home: Path) -> tuple[str, ...]:
    """The addresses of the frontends of the server that runs on this home; empty when none does."""
    found = _running(home)
    return () if found is None else tuple(found.urls)


def sweep(home: Path) -> None:
    """Remove the announcements and run folders of servers that died without tidying up."""
    run = home / "run"
    for announcement in _announced(home):
        if not _alive(announcement.pid):
            _announcement_file(home, announcement.pid).unlink(missing_ok=True)
    if door_of(home) is not None or not run.is_dir():
        return
    for folder in run.iterdir():
        if folder.is_dir() and not _owner_alive(folder):
            remove_run_folder(folder)


def _owner_alive(folder: Path) -> bool:
    try:
        return _alive(int((folder / "pid").read_text(encoding="ascii")))
    except (OSError, ValueError):
        return False
