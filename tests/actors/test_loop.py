"""The loop of an actor that fails: what is logged, and what the supervisor is told."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog.testing
from support.wait import until

from mlx_serving.actors.addresses import AddressBook, make_run_folder
from mlx_serving.actors.base import Actor, Loop, Node, Place, socket_options
from mlx_serving.actors.errors import ModelLoadFailed, ProtocolError
from mlx_serving.actors.messages.supervision import ActorFailed, ActorReady
from mlx_serving.actors.transport import Bus, Inbox
from mlx_serving.config.schema import Settings


class Failing(Actor):
    """Fails with the given error, in its set-up or in its first turn."""

    name = "qos"

    def __init__(self, error: Exception, in_set_up: bool) -> None:
        self._error = error
        self._in_set_up = in_set_up

    def set_up(self, node: Node) -> ActorReady | None:
        if self._in_set_up:
            raise self._error
        return super().set_up(node)

    @property
    def pending(self) -> int:
        return 1

    def work(self) -> None:
        raise self._error


@pytest.fixture
def book(home: Path) -> Iterator[AddressBook]:
    folder = make_run_folder(home)
    yield AddressBook(str(folder), frozenset({"qos", "supervisor"}))
    shutil.rmtree(folder)


@pytest.fixture
def bus() -> Iterator[Bus]:
    made = Bus(socket_options(Settings()))
    yield made
    assert made.close()


@pytest.fixture
def supervisor(bus: Bus, book: AddressBook) -> Iterator[Inbox]:
    """Where the actor reports."""

    def refused(error: ProtocolError) -> None:
        raise AssertionError(f"a frame was refused: {error}")

    inbox = Inbox(bus, book.of("supervisor"), refused)
    yield inbox
    inbox.close()


@pytest.mark.parametrize(
    ("error", "in_set_up", "logged", "code"),
    [
        (ModelLoadFailed("wrong"), True, [], "model_load_failed"),
        (ModelLoadFailed("wrong"), False, ["actor failed"], "model_load_failed"),
        (RuntimeError("wrong"), True, ["actor failed"], "internal_error"),
    ],
    ids=["a reason", "a reason too late", "a bug"],
)
def test_a_reason_why_an_actor_cannot_start_is_told_without_a_traceback(
    bus: Bus,
    book: AddressBook,
    supervisor: Inbox,
    home: Path,
    error: Exception,
    in_set_up: bool,
    logged: list[str],
    code: str,
) -> None:
    node = Node(bus, Place("qos", book, in_host=True), Settings(), home)
    with structlog.testing.capture_logs() as entries:
        assert not Loop(Failing(error, in_set_up), node).run()
    if not in_set_up:
        assert isinstance(received(supervisor), ActorReady)
    failed = received(supervisor)
    assert isinstance(failed, ActorFailed)
    assert failed.error.code == code
    assert "wrong" in failed.error.message
    errors = [entry for entry in entries if entry["log_level"] == "error"]
    assert [entry["event"] for entry in errors] == logged
    assert all(entry["exc_info"] is error for entry in errors)


class Settled(Actor):
    """Says what was kept out of garbage collections when it first worked, and fails then."""

    name = "qos"
    frozen = 0

    @property
    def pending(self) -> int:
        return 1

    def work(self) -> None:
        self.frozen = gc.get_freeze_count()
        raise RuntimeError("enough")


@pytest.mark.parametrize("in_host", [False, True])
def test_what_a_process_has_when_its_actor_is_ready_is_no_longer_searched_for_garbage(
    bus: Bus, book: AddressBook, supervisor: Inbox, home: Path, in_host: bool
) -> None:
    """In the host others come and go."""
    actor, before = Settled(), gc.get_freeze_count()
    try:
        Loop(actor, Node(bus, Place("qos", book, in_host), Settings(), home)).run()
        assert (actor.frozen > before) == (not in_host)
    finally:
        gc.unfreeze()
    assert isinstance(received(supervisor), ActorReady)


def received(inbox: Inbox) -> object:
    envelope = until(inbox.receive, what="a message to the supervisor")
    assert envelope is not None
    return envelope.message
