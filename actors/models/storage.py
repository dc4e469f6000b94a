"""Puts finished folders in place in one step, keeps two workers apart, and says when the disk is full."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from mlx_serving.actors.errors import StorageFull
from mlx_serving.actors.models.progress import Progress

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
_POLL_SECONDS = 0.1


def reserve(folder: Path, needed: int) -> None:
    """StorageFull with both numbers if the disk of `folder` has less than `needed` bytes left."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageFull(_full(folder, needed, free))


@contextlib.contextmanager
def full_disk_named(folder: Path, needed: int | None = None) -> Iterator[None]:
    """Turns the system's errors of a full or read-only disk into StorageFull."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            free = shutil.disk_usage(folder).free
            raise StorageFull(_full(folder, needed, free)) from error
        if error.errno in _NOT_WRITABLE:
            raise StorageFull(f"{error.filename or folder} cannot be written: {error.strerror}") from error
        raise


def _full(folder: Path, needed: int | None, free: int) -> str:
    want = f"{needed} bytes are needed and " if needed is not None else ""
    return f"the disk of {folder} is full: {want}{free} bytes are free. Make room and try again"


@contextlib.contextmanager
def exclusive(lock: Path, progress: Progress) -> Iterator[None]:
    """Holds the lock file; waits for whoever holds it and reports that as phase `wait`.

    The system drops the lock of a process that dies, so nobody waits for a dead one.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        while not _try_lock(file.fileno()):
            progress("wait", 0, None)
            time.sleep(_POLL_SECONDS)
        yield  # closing the file releases the lock


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def land(build: Path, target: Path) -> None:
    """Moves the finished folder `build` to `target` in one step, after its bytes are safely on disk."""
    for path in [*build.rglob("*"), build]:
        if not path.is_symlink():
            _sync(path)
    os.rename(build, target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def empty_folder(path: Path) -> Path:
    """The folder `path`, made anew."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path
