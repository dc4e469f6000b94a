"""The disk tier of the prefix cache: files, their index, and the threads that keep the disk away from the engine.

- Putting never waits: one thread writes, from a queue bounded in bytes; what does not fit is not kept.
- Fetching never waits either: one thread searches the index, some more read and check parts of the files it names,
  unless computing their tokens is sooner done. What is read may be used while what follows it is still on its way.
- A file that is not what was written is deleted, counted, and as if it had never been there.
- An error of the disk or of the index, a full disk above all, ends writing with one warning; serving goes on.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import attrs

from mlx_serving.actors.generation.prefix.disk_arrival import BROKEN, Arrival, Fetched, parts_of, read_parts
from mlx_serving.actors.generation.prefix.disk_index import FILES, DiskIndex, Entry, Figures
from mlx_serving.actors.generation.prefix.disk_record import (
    PARTIAL,
    SUFFIX,
    Reading,
    Record,
    fresh_memory,
    write_record,
)
from mlx_serving.actors.generation.prefix.disk_search import Found, Wanted, find, space_of
from mlx_serving.actors.generation.prefix.keys import ID_BYTES
from mlx_serving.actors.generation.prefix.worth import ReadingWorth
from mlx_serving.actors.memory import machine_bytes
from mlx_serving.native.cores import usable_cores

_READERS, _MOST_READERS = 4, 16
"""Threads that read where the model may compute on the host's cores, and at most where it does not."""
_QUEUE_BYTES = max(256 << 20, min(2 << 30, machine_bytes() // 64))
"""What waits to be written. A server that comes to rest hands over all it has of its last prompts at once."""
_RESERVE_BYTES = 512 << 20
"""Left free on the disk for others."""
_ABANDONED_SECONDS = 600.0
"""Age at which a file that the index does not name belongs to nobody."""
_CLOSE_SECONDS = 10.0

Warn = Callable[[str], None]


@attrs.define(eq=False)
class _Job:
    """Something for the writer to do. `done` is set when it did, or could not."""

    run: Callable[[DiskIndex], None]
    done: threading.Event = attrs.field(factory=threading.Event)


@attrs.frozen(eq=False)
class Fetch:
    """Entries on their way into memory."""

    _arriving: Future[list[Future[Fetched | None]]] = attrs.field(factory=Future)
    """One for each that was found, in the order of their tokens."""

    def done(self) -> bool:
        """Whether nothing has to be waited for."""
        if not self._arriving.done():
            return False
        return self._arriving.exception() is not None or all(each.done() for each in self._arriving.result())

    def __iter__(self) -> Iterator[Fetched]:
        """Waits for each; ends before one that is not what was written."""
        for arriving in self._arriving.result():
            fetched = arriving.result()
            if fetched is None:
                return
            yield fetched


class DiskTier:
    """Shared by any number of processes through the folder. Its methods are for one thread, but for `drop`."""

    def __init__(self, folder: Path, model: str, limit_bytes: int, warn: Warn) -> None:
        """`model` names a sub-folder; `limit_bytes` bounds all models in `folder` together.

        A folder that cannot be used is a warning, and a tier that is off.
        """
        self._folder = folder
        self._files = folder / model
        self._model = model
        self._limit = limit_bytes
        self._warn = warn
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._queued = 0
        self._lock = threading.Lock()
        self._search = ThreadPoolExecutor(1, "prefix-search")
        self._threads = _READERS
        self._readers = ThreadPoolExecutor(self._threads, "prefix-read")
        self._searched: DiskIndex | None = None
        self._writer = threading.Thread(target=self._write_all, name="prefix-write", daemon=True)
        self.figures = Figures()
        """Of this model, as of the last write."""
        self.dropped = 0
        self.is_on = True
        self.worth = ReadingWorth()
        self._memory: Callable[[int], memoryview] = fresh_memory
        self._writer.start()

    def read_to(self, memory: Callable[[int], memoryview]) -> None:
        """Before the first fetch: files of so many bytes are read to `memory`, for a device with memory apart.

        As it computes beside the host, as many threads read as there are cores.
        """
        self._memory = memory
        self._threads = max(_READERS, min(_MOST_READERS, usable_cores()))
        self._readers = ThreadPoolExecutor(self._threads, "prefix-read")

    def put(self, namespace: bytes, record: Record) -> bool:
        """Keep a record some time from now; False if it will not be."""
        with self._lock:
            if not self.is_on or self._queued + record.nbytes > _QUEUE_BYTES:
                return False
            self._queued += record.nbytes
        self._do(lambda index: self._write(index, namespace, record))
        return True

    def fetch(self, wanted: Wanted) -> Fetch:
        """What `find` finds, read and checked; nothing when it is not worth reading, or something was in the way."""
        arriving: Future[list[Future[Fetched | None]]] = Future()
        self._search.submit(self._fetch, wanted, arriving)
        return Fetch(arriving)

    def clear(self, seconds: float = _CLOSE_SECONDS) -> bool:
        """Delete everything of this model; False if that takes longer."""
        return self._do(lambda index: self._delete(index, index.of_model(self._model))).wait(seconds)

    def drop(self, entries: Sequence[Entry]) -> None:
        """Delete entries that turned out to be broken, and count them. For any thread."""
        with self._lock:
            self.dropped += len(entries)
        self._do(lambda index: self._delete(index, entries))

    def flush(self, seconds: float = _CLOSE_SECONDS) -> bool:
        """Wait until everything that was put is on disk; False if that takes longer."""
        return self._do(lambda index: None).wait(seconds)

    def turn_off(self, error: Exception) -> None:
        """Write no more, and say why; what is there is still read."""
        if self.is_on:
            self.is_on = False
            self._warn(f"the prefix cache no longer writes to {self._folder}: {error}")

    def close(self) -> None:
        """Write what is queued, and end the threads. A disk that takes long for it is left behind with a warning."""
        self._search.shutdown()
        self._readers.shutdown()
        if self._searched is not None:
            self._searched.close()
        self._jobs.put(None)
        self._writer.join(_CLOSE_SECONDS)
        if self._writer.is_alive() and self._queued:
            mib = self._queued / (1 << 20)
            self._warn(f"the prefix cache had not written {mib:.1f} MiB to {self._folder} when it was closed")

    def _do(self, run: Callable[[DiskIndex], None]) -> threading.Event:
        job = _Job(run)
        self._jobs.put(job)
        return job.done

    # --- searching ------------------------------------------------------------------------------------------

    def _fetch(self, wanted: Wanted, arriving: Future[list[Future[Fetched | None]]]) -> None:
        begun = time.monotonic()
        try:
            found = self._find(wanted)
            arrivals = [Arrival(each, self._opened(each), self.drop) for each in found]
        except Exception as error:
            arriving.set_exception(error)
            return
        results = [arrival.result for arrival in arrivals]
        arriving.set_result(results)
        parts = parts_of(arrivals)
        shared = iter(parts)
        try:
            for _ in range(min(self._threads, len(parts))):
                self._readers.submit(read_parts, shared)
        except RuntimeError:  # no more threads are to be had
            read_parts(shared)
        wait(results)
        if found and not any(result.exception() for result in results):
            self._account(found, [result.result() for result in results], time.monotonic() - begun)

    def _find(self, wanted: Wanted) -> list[Found]:
        """Entries that are worth reading."""
        try:
            if self._searched is None:
                self._searched = DiskIndex(self._folder)
            found = find(self._searched, self._model, wanted)
        except (OSError, sqlite3.Error):
            return []
        # Blocks behind the state in memory are of no use to models with states.
        held = wanted.state if wanted.with_states else wanted.blocks
        if found and not self.worth.is_worth(found[-1].stop - held, _bytes_of(found)):
            return []
        return found

    def _opened(self, found: Found) -> Reading | None:
        """None for a file that is not what was written."""
        try:
            return Reading(self._files, found.entry.stored, self._memory)
        except BROKEN:
            return None

    def _account(self, found: Sequence[Found], read: Sequence[Fetched | None], seconds: float) -> None:
        """Keep in mind that entries were used, up to one that was broken, and how long it took."""
        if None in read and found[-1].entry.is_state:
            return
        self.worth.read(_bytes_of(found), seconds)
        used = [each.entry for each in itertools.takewhile(lambda each: each is not None, read) if each is not None]
        self._do(lambda index: index.touch(used))

    # --- writing --------------------------------------------------------------------------------------------

    def _write_all(self) -> None:
        index: DiskIndex | None = None
        try:
            index = self._open()
        except (OSError, sqlite3.Error) as error:
            self.turn_off(error)
        while (job := self._jobs.get()) is not None:
            if index is not None:
                self._run(job, index)
            job.done.set()
        if index is not None:
            index.close()

    def _run(self, job: _Job, index: DiskIndex) -> None:
        try:
            job.run(index)
            self.figures = index.figures(self._model)
        except (OSError, sqlite3.Error) as error:
            if "locked" not in str(error):
                self.turn_off(error)

    def _open(self) -> DiskIndex:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._files.mkdir(mode=0o700, exist_ok=True)
        try:
            index = DiskIndex(self._folder)
            self._sweep(index)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            self.dropped += 1
            for name in FILES:
                (self._folder / name).unlink(missing_ok=True)
            index = DiskIndex(self._folder)
        self.figures = index.figures(self._model)
        return index

    def _sweep(self, index: DiskIndex) -> None:
        """Delete the files that processes left which died while they wrote."""
        named = {entry.stored.name for entry in index.of_model(self._model)}
        for path in self._files.iterdir():
            if path.name.endswith((SUFFIX, PARTIAL)) and path.name not in named:
                with contextlib.suppress(OSError):
                    if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                        path.unlink()

    def _write(self, index: DiskIndex, namespace: bytes, record: Record) -> None:
        try:
            if self.is_on and record.nbytes <= self._limit and not self._is_covered(index, record):
                self._add(index, namespace, record)
        finally:
            with self._lock:
                self._queued -= record.nbytes

    def _add(self, index: DiskIndex, namespace: bytes, record: Record) -> None:
        if shutil.disk_usage(self._files).free < record.nbytes + _RESERVE_BYTES:
            raise OSError(f"less than {_RESERVE_BYTES >> 20} MiB would be left free")
        stored = write_record(self._files, record)
        if index.add(self._model, space_of(namespace), record, stored):
            self._delete(index, [*self._outgrown(index, record), *index.excess(self._limit)])
        else:
            (self._files / stored.name).unlink(missing_ok=True)

    def _is_covered(self, index: DiskIndex, record: Record) -> bool:
        """Whether what is kept already has all its tokens."""
        if record.is_state:
            return index.state(self._model, record.key) is not None
        return any(each.tokens.startswith(record.tokens) for each in self._beside(index, record))

    def _outgrown(self, index: DiskIndex, record: Record) -> list[Entry]:
        """Blocks of which the record is a continuation."""
        if record.is_state:
            return []
        return [
            each
            for each in self._beside(index, record)
            if len(each.tokens) < len(record.tokens) and record.tokens.startswith(each.tokens)
        ]

    def _beside(self, index: DiskIndex, record: Record) -> list[Entry]:
        return index.children(self._model, record.parent, record.tokens[:ID_BYTES])

    def _delete(self, index: DiskIndex, entries: Sequence[Entry]) -> None:
        index.remove(entries)
        for entry in entries:
            (self._folder / entry.model / entry.stored.name).unlink(missing_ok=True)


def _bytes_of(found: Sequence[Found]) -> int:
    return sum(each.entry.stored.size for each in found)
