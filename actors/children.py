"""What the supervisor starts: an actor on a thread of this process, or in a process of its own.

A child process gets its whole order as one JSON line on stdin and takes the end of stdin for the end of its parent,
so that none outlives a host that was killed. Its stdout is our stderr: stdout may belong to a protocol.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import attrs

from mlx_serving.actors.addresses import AddressBook
from mlx_serving.actors.base import Actor, Loop, Node, Place
from mlx_serving.actors.transport import Bus
from mlx_serving.config.fields import build, flatten
from mlx_serving.config.schema import Settings

Exited = Callable[[int], None]
"""Called once, from any thread, with the exit status (0 is well)."""


@attrs.frozen
class Order:
    """What a child has to know to start: its name, its kind (a key of system.ACTORS), and for a replica its model."""

    name: str
    kind: str
    book: AddressBook
    settings: Settings
    home: Path
    model_path: str | None = None
    model_name: str | None = None

    def to_json(self) -> str:
        return json.dumps(
            {
                "name": self.name,
                "kind": self.kind,
                "folder": self.book.folder,
                "threads": sorted(self.book.threads),
                "settings": flatten(self.settings),
                "home": str(self.home),
                "model_path": self.model_path,
                "model_name": self.model_name,
            }
        )

    @classmethod
    def from_json(cls, line: str) -> Order:
        plain: dict[str, Any] = json.loads(line)
        book = AddressBook(plain.pop("folder"), frozenset(plain.pop("threads")))
        values = {
            key: tuple(value) if isinstance(value, list) else value for key, value in plain.pop("settings").items()
        }
        settings = build(values)
        return cls(book=book, settings=settings, home=Path(plain.pop("home")), **plain)


class Child(Protocol):
    """A started actor."""

    placement: str
    pid: int

    def alive(self) -> bool: ...

    def kill(self) -> None:
        """End it now; a thread cannot be, and is left to end by itself."""
        ...

    def join(self, seconds: float) -> bool:
        """True when it has ended."""
        ...


class ThreadChild:
    """An actor on a daemon thread of this process."""

    placement = "thread"

    def __init__(self, actor: Actor, order: Order, bus: Bus, pid: int, exited: Exited) -> None:
        self.pid = pid
        self._exited = exited
        self._actor = actor
        self._place = Place(order.name, order.book, in_host=True)
        self._order = order
        self._bus = bus
        self._thread = threading.Thread(target=self._run, name=order.name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        ended_well = False
        try:
            node = Node(self._bus, self._place, self._order.settings, self._order.home)
            ended_well = Loop(self._actor, node).run()
        finally:
            self._exited(0 if ended_well else 1)

    def alive(self) -> bool:
        return self._thread.is_alive()

    def kill(self) -> None:
        """Nothing ends a thread from outside."""

    def join(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()


class ProcessChild:
    """An actor in a process of its own."""

    placement = "process"

    def __init__(self, order: Order, exited: Exited) -> None:
        self._exited = exited
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlx_serving.actors.child_process"],
            stdin=subprocess.PIPE,
            stdout=sys.__stderr__.fileno() if sys.__stderr__ is not None else None,
            start_new_session=True,
        )
        self.pid = self._process.pid
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once; the waiter reports it
            self._process.stdin.write(order.to_json().encode() + b"\n")
            self._process.stdin.flush()
        self._waiter = threading.Thread(target=self._wait, name=f"wait-{order.name}", daemon=True)
        self._waiter.start()

    def _wait(self) -> None:
        status = self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._exited(status)

    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()

    def join(self, seconds: float) -> bool:
        self._waiter.join(seconds)
        return not self._waiter.is_alive()
