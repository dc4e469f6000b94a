"""The generation actor: one replica of one model behind the engine protocol.

It works in turns: drain the control messages, run one step, send one frame with every stream's new tokens.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import attrs

from mlx_serving.actors.base import Actor, Node
from mlx_serving.actors.errors import ServingError, describe
from mlx_serving.actors.generation.account import StepAccount
from mlx_serving.actors.generation.announcer import ANNOUNCE_SECONDS, Announcer
from mlx_serving.actors.generation.engine import Engine
from mlx_serving.actors.messages.admission import (
    CacheClearRequested,
    CacheObserved,
    CacheStatsRequested,
    SequenceOutput,
    TokensGenerated,
)
from mlx_serving.actors.messages.batching import (
    SequenceAborted,
    SequencePaused,
    SequenceResumed,
    SequencesEnded,
)
from mlx_serving.actors.messages.envelope import Envelope
from mlx_serving.actors.messages.frontend import Refused
from mlx_serving.actors.messages.generation import CacheGranted, SequenceAssigned, SequencesDropped
from mlx_serving.actors.messages.supervision import ActorReady

REST_SECONDS = 1.0
"""Without work, before the engine gives memory back."""
RETRY_SECONDS = 0.02
"""Wait before tokens are offered again to an admission that does not keep up."""


class GenerationActor(Actor):
    """Answers for tokens. `make_engine` is called on the actor's own thread, which owns everything MLX."""

    def __init__(self, name: str, make_engine: Callable[[], Engine]) -> None:
        self.name = name
        self._make_engine = make_engine

    def set_up(self, node: Node) -> ActorReady:
        self.node = node
        self._live: set[int] = set()
        self._unsent: tuple[SequenceOutput, ...] = ()
        self._engine = self._make_engine()
        model, limits = self._engine.load()
        self._account = StepAccount(self.name, model.name)
        self._announcer = Announcer(self.name) if node.settings.models.replicas > 1 else None
        self.interval = ANNOUNCE_SECONDS if self._announcer is not None else REST_SECONDS
        self._worked_at: float | None = None
        self._handlers: dict[type, Callable[[Any], None]] = {
            SequenceAssigned: self._assigned,
            SequenceAborted: self._aborted,
            SequencePaused: lambda message: self._engine.pause(message.sequence_id),
            SequenceResumed: lambda message: self._engine.resume(message.sequence_id),
            SequencesDropped: self._dropped,
            CacheGranted: lambda message: self._engine.grant(message.kv_bytes),
        }
        self._questions: dict[type, Callable[[Any], None]] = {
            CacheStatsRequested: lambda _: None,
            CacheClearRequested: lambda message: self._engine.clear_cache(message.tier),
        }
        held = (limits.slots, limits.kv_bytes, limits.weight_bytes, limits.memory_bytes)
        return ActorReady(self.name, os.getpid(), model, *held)

    def handle(self, envelope: Envelope) -> None:
        if type(envelope.message) in self._questions:
            self._answer(envelope)
            return
        handler = self._handlers.get(type(envelope.message))
        if handler is None:
            self.node.log.warning("unexpected message", message=type(envelope.message).__name__)
            return
        handler(envelope.message)

    @property
    def pending(self) -> int:
        return self._engine.pending + len(self._unsent)

    def work(self) -> None:
        if self._unsent and not self._send(()):
            self.node.poller.wait(RETRY_SECONDS)
            return
        started = self.node.clock()
        report = self._engine.step()
        self.steps += 1
        self._announce()
        if report.outputs:
            self._send(report.outputs)
        now, goes_on = self.node.clock(), self._engine.pending > 0
        self._worked_at = now
        self._account.add(report, started, now, goes_on)
        if self._account.due(now, goes_on):
            self.node.emit(self._account.take())

    def tick(self, now: float) -> None:
        self._announce()
        if self._worked_at is not None and now - self._worked_at >= REST_SECONDS:
            self._worked_at = None
            self._engine.rest()

    def tear_down(self, seconds: float) -> None:
        engine = getattr(self, "_engine", None)
        if engine is not None:
            engine.close()

    def _assigned(self, message: SequenceAssigned) -> None:
        sequence_id = message.sequence.sequence_id
        self._live.add(sequence_id)
        try:
            self._engine.submit(message.sequence, message.assigned_at)
        except Exception as error:
            if not isinstance(error, ServingError):
                self.node.log.exception("submit failed")
            self._send((SequenceOutput(sequence_id, "", (), error=describe(error)),))

    def _aborted(self, message: SequenceAborted) -> None:
        self._engine.cancel(message.sequence_id)
        self._release((message.sequence_id,))

    def _dropped(self, _: SequencesDropped) -> None:
        for sequence_id in self._live:
            self._engine.cancel(sequence_id)
        self._live.clear()
        self._unsent = ()
        if self._announcer is not None:
            self._announcer.forget()  # batching is a new one

    def _announce(self) -> None:
        """Tell batching what the prefix cache holds, where it has a choice of replicas."""
        if self._announcer is None:
            return
        news = self._announcer.news(self._engine.held_prefixes(), self.node.clock())
        if news is not None and not self.node.tell("batching", news):
            self._announcer.forget()

    def _answer(self, envelope: Envelope) -> None:
        """Carry out what admission asks of the prefix cache, and tell what it holds then."""
        try:
            self._questions[type(envelope.message)](envelope.message)
            answer: Any = CacheObserved(self.name, self._engine.cache_stats())
        except Exception as error:
            if not isinstance(error, ServingError):
                self.node.log.exception("cache question failed")
            answer = Refused(describe(error))
        self.node.tell("admission", answer, correlation=envelope.correlation)

    def _send(self, outputs: tuple[SequenceOutput, ...]) -> bool:
        """One frame with what is new and what could not be sent before; False while admission does not keep up."""
        outputs = self._unsent + outputs
        sent = self.node.tell("admission", TokensGenerated(self.name, outputs))
        self._unsent = () if sent else tuple(attrs.evolve(each) for each in outputs)  # the engine fills its own anew
        if sent:
            self._release(tuple(each.sequence_id for each in outputs if each.end is not None or each.error is not None))
        return sent

    def _release(self, sequence_ids: tuple[int, ...]) -> None:
        released = tuple(each for each in sequence_ids if each in self._live)
        if released:
            self._live.difference_update(released)
            self.node.tell("batching", SequencesEnded(self.name, released))
