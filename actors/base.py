"""The life of an actor: set up, run, tear down, and what happens when something in it fails.

An actor is a thin shell around a policy. Its loop blocks only when there is nothing to do; otherwise it drains its
inbox, lets the actor work one turn, and reports. An exception while handling one message is logged and costs that
message alone; an exception in `set_up` or `work` ends the actor, and the supervisor decides.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import attrs

from mlx_serving.actors.addresses import AddressBook
from mlx_serving.actors.clock import Clock, monotonic
from mlx_serving.actors.errors import ProtocolError, ServingError, describe
from mlx_serving.actors.logs import configure_logging, get_logger
from mlx_serving.actors.messages.envelope import Envelope
from mlx_serving.actors.messages.supervision import ActorFailed, ActorReady, Heartbeat, SettingsChanged, Stop
from mlx_serving.actors.transport import Bus, Inbox, Outbox, Poller, SocketOptions, Waker
from mlx_serving.config.fields import build, fields, flatten
from mlx_serving.config.schema import Settings
from mlx_serving.config.values import parse

DRAIN_LIMIT = 256
"""Messages handled before the actor gets its turn to work."""

REOPEN_SECONDS = 0.5


def socket_options(settings: Settings) -> SocketOptions:
    transport = settings.transport
    return SocketOptions(transport.high_water_mark, transport.linger_ms, transport.max_message_bytes)


@attrs.frozen
class Place:
    """Where an actor runs: its name, the addresses of the others, and whether it shares the host's process."""

    name: str
    book: AddressBook
    in_host: bool


class Node:
    """What connects one actor to the world. It belongs to the actor's thread."""

    def __init__(self, bus: Bus, place: Place, settings: Settings, home: Path, clock: Clock = monotonic) -> None:
        self.bus = bus
        self.place = place
        self.settings = settings
        self.home = home
        self.clock = clock
        self.log = get_logger(place.name)
        self.poller = Poller()
        self.waker = Waker()
        self.inbox = Inbox(bus, place.book.of(place.name), self.refused)
        self.poller.add(self.inbox)
        self.poller.add(self.waker)
        self.refused_frames = 0
        self._outboxes: dict[str, Outbox] = {}
        self._reopen_after: dict[str, float] = {}

    def tell(self, actor: str, message: Any, *, correlation: int = 0, trace_id: str = "") -> bool:
        """Send a message to another actor's inbox; False when that actor's queue is full."""
        envelope = Envelope(message, self.place.name, correlation, None, trace_id)
        if self._outbox(actor).send(envelope) or self._reopened(actor).send(envelope):
            return True
        self.log.warning("inbox full", receiver=actor, message=type(message).__name__)
        return False

    def emit(self, event: Any) -> None:
        """Tell telemetry; lost when telemetry does not keep up."""
        envelope = Envelope(event, self.place.name)
        if not self._outbox("telemetry").send(envelope):
            self._reopened("telemetry").send(envelope)

    def forget(self, actor: str) -> None:
        """Close the way to an actor that is gone for good (a replica)."""
        outbox = self._outboxes.pop(actor, None)
        if outbox is not None:
            outbox.close()

    def apply(self, change: SettingsChanged) -> None:
        """Go on with changed live settings."""
        known = fields()
        changed = {each.key: parse(known[each.key], each.value) for each in change.settings}
        self.settings = build({**flatten(self.settings), **changed})
        configure_logging(self.settings.telemetry)

    def refused(self, error: ProtocolError) -> None:
        self.refused_frames += 1
        self.log.warning("frame refused", reason=error.message)

    def close(self) -> None:
        for outbox in self._outboxes.values():
            outbox.close()
        self.inbox.close()
        self.waker.close()

    def _reopened(self, actor: str) -> Outbox:
        """An inproc connection does not survive a restart of its other side: connect anew, once in a while."""
        now = self.clock()
        if now >= self._reopen_after.get(actor, 0.0):
            self._reopen_after[actor] = now + REOPEN_SECONDS
            self.forget(actor)
        return self._outbox(actor)

    def _outbox(self, actor: str) -> Outbox:
        outbox = self._outboxes.get(actor)
        if outbox is None:
            address = self.place.book.of(actor).best(self.place.in_host)
            outbox = self._outboxes[actor] = Outbox(self.bus, address)
        return outbox


class Actor:
    """The behaviour of one actor. Sub-classes override what they need."""

    name: str = ""
    interval: float | None = None
    """Seconds between ticks; None for an actor that only answers."""

    def set_up(self, node: Node) -> ActorReady | None:
        """Prepare. What is raised here is reported as the reason why the actor is not ready."""
        self.node = node
        return None

    def handle(self, envelope: Envelope) -> None:
        """One message from the inbox."""

    def tick(self, now: float) -> None:
        """Called every `interval` seconds."""

    def settings_changed(self) -> None:
        """`node.settings` has new values of live settings."""

    def receive_more(self) -> bool:
        """Take from further ends (frontends, a pool's results). True when more may wait there."""
        return False

    def work(self) -> None:
        """One turn of work between two drains of the inbox."""

    @property
    def pending(self) -> int:
        """Units of work that are waiting for `work`; while it is above 0 the loop does not block."""
        return 0

    steps: int = 0
    """Completed units of work: the supervisor watches it while `pending` is above 0."""

    def tear_down(self, seconds: float) -> None:
        """Give back what `set_up` took; answer whoever still waits. `seconds` are left."""


class Loop:
    """Runs one actor on the current thread until it is told to stop."""

    def __init__(self, actor: Actor, node: Node) -> None:
        self._actor = actor
        self._node = node
        self._stop: Stop | None = None
        self._is_set_up = False
        self._next_tick = node.clock()
        self._next_beat = node.clock()

    def run(self) -> bool:
        """Set up, run, tear down. False when the actor failed; the supervisor has been told why."""
        try:
            ready = self._actor.set_up(self._node)
            self._is_set_up = True
            if not self._node.place.in_host:
                _expect_to_stay()
            self._node.tell("supervisor", ready or ActorReady(self._actor.name, os.getpid()))
            self._turns()
        except Exception as error:
            self._log_failure(error)
            self._node.tell("supervisor", ActorFailed(self._actor.name, describe(error)))
            return False
        finally:
            self._end()
        return True

    def _log_failure(self, error: Exception) -> None:
        """The reason why an actor cannot start needs no traceback; the supervisor passes it on."""
        if not self._is_set_up and isinstance(error, ServingError):
            self._node.log.debug("actor not ready", exc_info=error)
        else:
            self._node.log.error("actor failed", exc_info=error)

    def _turns(self) -> None:
        more_waits = False
        while self._stop is None:
            if not more_waits and not self._actor.pending:
                self._node.poller.wait(self._idle_seconds())
                self._node.waker.rest()
            more_waits = self._drain()
            more_waits |= self._actor.receive_more()
            if self._actor.pending:
                self._actor.work()
            self._report(self._node.clock())

    def _drain(self) -> bool:
        """Handle what waits in the inbox; True when the limit was reached and more may be there."""
        for _ in range(DRAIN_LIMIT):
            envelope = self._node.inbox.receive()
            if envelope is None:
                return False
            if isinstance(envelope.message, Stop):
                self._stop = envelope.message
                return False
            if isinstance(envelope.message, SettingsChanged):
                self._node.apply(envelope.message)
                self._actor.settings_changed()
            else:
                self._handle(envelope)
        return True

    def _handle(self, envelope: Envelope) -> None:
        try:
            self._actor.handle(envelope)
        except Exception:
            self._node.log.exception("message failed", message=type(envelope.message).__name__)

    def _report(self, now: float) -> None:
        if self._actor.interval is not None and now >= self._next_tick:
            self._next_tick = now + self._actor.interval
            self._tick(now)
        if now >= self._next_beat:
            self._next_beat = now + self._node.settings.supervision.heartbeat_seconds
            self._node.tell("supervisor", Heartbeat(self._actor.name, self._actor.steps, self._actor.pending))

    def _tick(self, now: float) -> None:
        try:
            self._actor.tick(now)
        except Exception:
            self._node.log.exception("tick failed")

    def _idle_seconds(self) -> float:
        due = self._next_beat if self._actor.interval is None else min(self._next_beat, self._next_tick)
        return max(0.0, due - self._node.clock()) + 0.001

    def _end(self) -> None:
        try:
            self._actor.tear_down(self._stop.seconds if self._stop else 0.0)
        except Exception:
            self._node.log.exception("tear-down failed")
        self._node.close()


def _expect_to_stay() -> None:
    """What the process has by now is looked through for garbage once more, and not again while it works.

    A model's modules, a tokenizer and the libraries are some hundred thousand objects: that takes a replica 50 ms, in
    which no stream goes on.
    """
    gc.collect()
    gc.freeze()
