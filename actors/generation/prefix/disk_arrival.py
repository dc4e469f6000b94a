"""Files of the disk tier on their way into memory, read by several threads in the order in which they are wanted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

import attrs

from mlx_serving.actors.generation.prefix.disk_index import Entry
from mlx_serving.actors.generation.prefix.disk_record import BrokenFile, Content, Reading
from mlx_serving.actors.generation.prefix.disk_search import Found

BROKEN = (OSError, BrokenFile, ValueError, KeyError, TypeError)
"""What reading a file raises that is not what was written."""

Part = tuple["Arrival", int]


@attrs.frozen(eq=False)
class Fetched:
    """One entry in memory again: tensors of tokens from `start`, good for the prompt up to `stop`."""

    start: int
    stop: int
    content: Content
    entry: Entry


@attrs.define(eq=False)
class Arrival:
    """A file that was found, and what comes of it: None, after `drop` was called, if it is not what was written."""

    found: Found
    reading: Reading | None
    """None if it cannot even be opened."""
    _drop: Callable[[Sequence[Entry]], None]
    """Any thread may call it."""
    result: Future[Fetched | None] = attrs.field(factory=Future)
    _lock: threading.Lock = attrs.field(factory=threading.Lock)
    _left: int = attrs.field(init=False)
    """Parts that are not read yet."""
    _error: Exception | None = None

    def __attrs_post_init__(self) -> None:
        self._left = len(self.reading.parts) if self.reading is not None else 0
        if self.reading is None:
            self._is_broken()

    def read(self, part: int) -> None:
        """By any thread, each part once. The last one makes the result."""
        assert self.reading is not None
        try:
            self.reading.read(part)
        except Exception as error:
            self._error = error
        with self._lock:
            self._left -= 1
            is_last = not self._left
        if is_last:
            self._end(self.reading)

    def _end(self, reading: Reading) -> None:
        try:
            if self._error is not None:
                raise self._error
            content = reading.content()
            self.result.set_result(Fetched(self.found.start, self.found.stop, content, self.found.entry))
        except BROKEN:
            self._is_broken()
        except Exception as error:
            self.result.set_exception(error)
        finally:
            reading.close()

    def _is_broken(self) -> None:
        self._drop([self.found.entry])
        self.result.set_result(None)


def parts_of(arrivals: Sequence[Arrival]) -> list[Part]:
    """All that is to be read, in order."""
    return [(each, part) for each in arrivals if each.reading is not None for part in each.reading.parts]


def read_parts(parts: Iterator[Part]) -> None:
    """Until none is left. The iterator of a list, which threads share: a job for each part would take longer to hand
    over than some parts to read."""
    for arrival, part in parts:
        arrival.read(part)
