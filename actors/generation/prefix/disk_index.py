"""The list of what the disk tier holds: a SQLite file that several processes share.

A row is written after its file is in place and deleted before its file is, so a row whose file is missing, or a file
without a row, is what a process that died left, and harmless.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import attrs

from mlx_serving.actors.generation.prefix.disk_record import Record, Stored
from mlx_serving.actors.generation.prefix.keys import ID_BYTES

NAME = "index.sqlite"
FILES = (NAME, f"{NAME}-wal", f"{NAME}-shm")
"""The list, and what SQLite keeps beside it while it is open."""
_VERSION = 2
_BUSY_SECONDS = 5.0
_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS entries (
    model TEXT NOT NULL, key BLOB NOT NULL, is_state INTEGER NOT NULL, space BLOB NOT NULL, parent BLOB NOT NULL,
    first BLOB NOT NULL, start INTEGER NOT NULL, stop INTEGER NOT NULL, tokens BLOB NOT NULL,
    file TEXT NOT NULL, size INTEGER NOT NULL, checksum INTEGER NOT NULL, used REAL NOT NULL,
    PRIMARY KEY (model, key, is_state)
)""",
    "CREATE INDEX IF NOT EXISTS by_parent ON entries (model, parent, first) WHERE NOT is_state",
    "CREATE INDEX IF NOT EXISTS by_space ON entries (model, space, stop) WHERE is_state",
    "CREATE INDEX IF NOT EXISTS by_use ON entries (used, stop)",
)
_COLUMNS = "model, key, is_state, start, stop, tokens, file, size, checksum"


@attrs.frozen
class Entry:
    """One row: where the tensors of a block or state are."""

    model: str
    key: bytes
    is_state: bool
    start: int
    stop: int
    tokens: bytes
    stored: Stored


@attrs.frozen
class Figures:
    """Entries, the tokens of their blocks, and bytes."""

    entries: int = 0
    tokens: int = 0
    bytes: int = 0


class DiskIndex:
    """One connection, for one thread at a time. Every method may raise sqlite3.Error."""

    def __init__(self, folder: Path) -> None:
        """Open or make the list in `folder`; one of another version is emptied."""
        self._connection = sqlite3.connect(
            folder / NAME, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            _keep_private(folder)
            self._go_wal()
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        self._connection.close()

    def state_lengths(self, model: str, space: bytes, at_most: int) -> list[int]:
        """Lengths of prefixes in a namespace of which a state is kept, ascending."""
        rows = self._connection.execute(
            "SELECT DISTINCT stop FROM entries WHERE is_state AND model = ? AND space = ? AND stop <= ? ORDER BY stop",
            (model, space, at_most),
        )
        return [stop for (stop,) in rows]

    def state(self, model: str, key: bytes) -> Entry | None:
        rows = self._select("is_state AND model = ? AND key = ?", (model, key))
        return rows[0] if rows else None

    def children(self, model: str, parent: bytes, first: bytes) -> list[Entry]:
        """The blocks that follow a prefix and begin with this (packed) token."""
        return self._select("NOT is_state AND model = ? AND parent = ? AND first = ?", (model, parent, first))

    def add(self, model: str, space: bytes, record: Record, stored: Stored) -> bool:
        """Add a row; False if another process was faster."""
        cursor = self._connection.execute(
            "INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                model,
                record.key,
                record.is_state,
                space,
                record.parent,
                record.tokens[:ID_BYTES],
                record.start,
                record.stop,
                record.tokens,
                stored.name,
                stored.size,
                stored.checksum,
                time.time(),
            ),
        )
        return cursor.rowcount > 0

    def touch(self, entries: Iterable[Entry]) -> None:
        """They were used just now. Of entries of the same moment, `excess` names the longer prefixes first."""
        now = time.time()
        with self._transaction():
            self._connection.executemany(
                "UPDATE entries SET used = ? WHERE model = ? AND key = ? AND is_state = ?",
                [(now, entry.model, entry.key, entry.is_state) for entry in entries],
            )

    def remove(self, entries: Sequence[Entry]) -> None:
        with self._transaction():
            self._connection.executemany(
                "DELETE FROM entries WHERE model = ? AND key = ? AND is_state = ? AND file = ?",
                [(entry.model, entry.key, entry.is_state, entry.stored.name) for entry in entries],
            )

    def excess(self, limit: int) -> list[Entry]:
        """The least recently used entries, of all models, without which the rest takes at most `limit` bytes."""
        excess = self.figures().bytes - limit
        if excess <= 0:
            return []
        chosen: list[Entry] = []
        for entry in self._select("1 ORDER BY used, stop DESC", ()):
            if excess <= 0:
                break
            chosen.append(entry)
            excess -= entry.stored.size
        return chosen

    def of_model(self, model: str) -> list[Entry]:
        return self._select("model = ?", (model,))

    def figures(self, model: str | None = None) -> Figures:
        """Of one model, or of all."""
        where, values = ("WHERE model = ?", (model,)) if model is not None else ("", ())
        (row,) = self._connection.execute(
            f"SELECT COUNT(*), COALESCE(SUM(LENGTH(tokens)), 0), COALESCE(SUM(size), 0) FROM entries {where}", values
        ).fetchall()
        return Figures(row[0], row[1] // ID_BYTES, row[2])

    def _go_wal(self) -> None:
        """SQLite does not wait for others by itself when it changes the mode of the journal."""
        end = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(0.02)

    def _prepare(self) -> None:
        with self._transaction():
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version not in (0, _VERSION):
                self._connection.execute("DROP TABLE IF EXISTS entries")
            for statement in _SCHEMA:
                self._connection.execute(statement)
            self._connection.execute(f"PRAGMA user_version = {_VERSION}")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def _select(self, where: str, values: tuple[object, ...]) -> list[Entry]:
        rows = self._connection.execute(f"SELECT {_COLUMNS} FROM entries WHERE {where}", values)
        return [
            Entry(model, key, bool(is_state), start, stop, tokens, Stored(*stored))
            for model, key, is_state, start, stop, tokens, *stored in rows
        ]


def _keep_private(folder: Path) -> None:
    """Leave the files to their owner alone.

    Before the first statement, as SQLite gives new files beside the list its mode. By name, as closing a descriptor of
    the list would drop the locks that other connections of this process have on it.
    """
    for name in FILES:
        # A file system without modes refuses, and the mount says who reads it.
        with contextlib.suppress(FileNotFoundError, PermissionError):
            (folder / name).chmod(0o600)
