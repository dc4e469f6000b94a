"""Where each actor listens.

Every actor has one inbox, bound to `ipc://RUN/NAME.sock` and, when it runs on a thread of the host, to
`inproc://NAME` as well; admission has a second end, the door, to which frontends connect. RUN is a private folder
(mode 0700) made anew for each run of a server, short enough for the path limit of Unix sockets.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import attrs

PATH_LIMIT = 103
"""Bytes in a Unix socket's path on macOS (Linux allows 107)."""

LONGEST_NAME = 24
CONTROL_ACTORS = ("supervisor", "telemetry", "qos", "batching", "admission")
DOOR = "door"
SERVER_FILE = "server.json"


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


def _server_file(home: Path) -> Path:
    return home / "run" / SERVER_FILE


def announce(home: Path, door: str, urls: tuple[str, ...]) -> None:
    """Let live commands on this home find the server: its door, its pid, its addresses."""
    path = _server_file(home)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps({"pid": os.getpid(), "door": door, "urls": urls}), encoding="utf-8")
    draft.replace(path)


def withdraw(home: Path) -> None:
    """Undo `announce`, if the announcement is still ours."""
    path = _server_file(home)
    if _announced(path).get("pid") == os.getpid():
        path.unlink(missing_ok=True)


def _announced(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


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
    found = _announced(_server_file(home))
    door = found.get("door")
    return door if isinstance(door, str) and _alive(found.get("pid")) else None


def urls_of(home: Path) -> tuple[str, ...]:
    """The addresses of the frontends of the server that runs on this home; empty when none does."""
    urls = _announced(_server_file(home)).get("urls")
    return tuple(map(str, urls)) if isinstance(urls, list) and door_of(home) is not None else ()


def sweep(home: Path) -> None:
    """Remove the run folders of servers that died without tidying up."""
    run = home / "run"
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
