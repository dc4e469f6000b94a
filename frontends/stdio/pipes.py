"""The two pipes to the host, without threads and without changing the mode that others see on them.

A descriptor that was reported ready takes or gives something without blocking; `O_NONBLOCK` would be set for
every process that shares the pipe or terminal.
"""

from __future__ import annotations

import asyncio
import os
import select

_READ_BYTES = 64 << 10


class Intake:
    """What the host writes. Nothing is read before it is asked for: the pipe holds a fast host back."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    async def read(self) -> bytes:
        """The next bytes; empty when the host has closed its end."""
        await self._readable()
        try:
            return os.read(self._fd, _READ_BYTES)
        except OSError:  # a terminal or socket that was hung up
            return b""

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        try:
            loop.add_reader(self._fd, ready.set_result, None)
        except OSError:  # a file or /dev/null: always ready, so the loop does not watch it
            await asyncio.sleep(0)
            return
        try:
            await ready
        finally:
            loop.remove_reader(self._fd)


class Outbox:
    """What the host reads. Bytes wait here while the pipe is full; writers wait for `room` first."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._waiting = bytearray()
        self._watched = False
        self._moved = asyncio.Event()
        self.broken = asyncio.Event()
        """Set when the host has closed its end: nothing more can be said to it."""

    async def room(self, bound: int) -> None:
        """Return when at most `bound` bytes wait. Raises BrokenPipeError when the host is gone."""
        while len(self._waiting) > bound and not self.broken.is_set():
            self._moved.clear()
            await self._moved.wait()
        if self.broken.is_set():
            raise BrokenPipeError("the host closed its end")

    def write(self, data: bytes) -> None:
        """Add `data`, and write what the pipe takes."""
        if not self.broken.is_set():
            self._waiting += data
            if not self._watched:
                self._move()

    def close(self) -> None:
        """Stop watching the pipe; what still waits is lost."""
        self._watch(False)

    def _move(self) -> None:
        try:
            while self._waiting and select.select([], [self._fd], [], 0)[1]:
                written = os.write(self._fd, self._waiting[: select.PIPE_BUF])
                del self._waiting[:written]
        except OSError:
            self._waiting.clear()
            self.broken.set()
        self._watch(bool(self._waiting))
        self._moved.set()

    def _watch(self, wanted: bool) -> None:
        loop = asyncio.get_running_loop()
        if wanted and not self._watched:
            loop.add_writer(self._fd, self._move)
        elif self._watched and not wanted:
            loop.remove_writer(self._fd)
        self._watched = wanted
