"""One actor on a real bus, turned by hand: the test moves its clock and reads what the others are told."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.wait import until

from mlx_serving.actors.addresses import CONTROL_ACTORS, AddressBook, make_run_folder
from mlx_serving.actors.base import Actor, Node, Place, socket_options
from mlx_serving.actors.messages.envelope import Envelope
from mlx_serving.actors.transport import Bus, Inbox
from mlx_serving.config.schema import Settings


class Stage:
    """`peers` are the actors whose inboxes exist; a message to any other is never read."""

    def __init__(self, actor: Actor, settings: Settings, home: Path, peers: tuple[str, ...]) -> None:
        self.now = 1000.0
        self._folder = make_run_folder(home)
        self._bus = Bus(socket_options(settings))
        book = AddressBook(str(self._folder), frozenset(CONTROL_ACTORS))
        self._inboxes = {peer: Inbox(self._bus, book.of(peer), _fail) for peer in peers}
        self.node = Node(self._bus, Place(actor.name, book, in_host=True), settings, home, lambda: self.now)
        self.actor = actor
        actor.set_up(self.node)

    def handle(self, message: Any, sender: str = "test", correlation: int = 0) -> None:
        self.actor.handle(Envelope(message, sender, correlation))

    def told(self, peer: str) -> Envelope:
        """The next envelope that `peer` received."""
        envelope = until(self._inboxes[peer].receive, what=f"a message to {peer}")
        assert envelope is not None
        return envelope

    def told_nothing(self, peer: str) -> bool:
        return self._inboxes[peer].receive() is None

    def close(self) -> None:
        self.actor.tear_down(1.0)
        self.node.close()
        for inbox in self._inboxes.values():
            inbox.close()
        assert self._bus.close()
        shutil.rmtree(self._folder)


@contextmanager
def staged(actor: Actor, settings: Settings, home: Path, *peers: str) -> Iterator[Stage]:
    """A stage that is taken down again, whatever the test does."""
    stage = Stage(actor, settings, home, peers)
    try:
        yield stage
    finally:
        stage.close()


def _fail(error: Exception) -> None:
    raise AssertionError(f"a frame was refused: {error}")
