"""Descriptions of model folders, for as long as no file in them changes.

Describing one reads its tokenizer, a quarter of a second in which the library lets no other thread of the process run.
"""

from __future__ import annotations

import threading
from pathlib import Path

import attrs

from mlx_serving.actors.models.metadata import describe_folder
from mlx_serving.actors.models.record import ModelRecord

_Stamp = tuple[tuple[str, int, int, int, int], ...]
"""Of every file its path, inode, size, and when its contents and its status last changed (ns)."""


class Descriptions:
    """May be used by several threads at once; they wait for each other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[Path, tuple[_Stamp, ModelRecord]] = {}

    def of(self, folder: Path, name: str, source: str) -> ModelRecord:
        """As `describe_folder`; what that raises is not kept."""
        with self._lock:
            stamp = _stamp(folder)  # before the files are read: what changes meanwhile is read again next time
            known, record = self._known.pop(folder, (None, None))
            if record is None or known != stamp:
                record = describe_folder(folder, name, source)
            self._known[folder] = stamp, record
        return attrs.evolve(record, name=name, source=source)


OF_THIS_PROCESS = Descriptions()
"""The host's actors have a store each, for the same folders."""


def _stamp(folder: Path) -> _Stamp:
    """A link counts as the file that it leads to; one that leads nowhere is none."""
    found = []
    for path in sorted(folder.rglob("*")):
        try:
            status = path.stat()
        except OSError:
            continue
        found.append((str(path), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return tuple(found)
