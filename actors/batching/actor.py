"""The batching actor: drains its inbox into the scheduler and carries out what it decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlx_serving.actors.base import Actor, Node
from mlx_serving.actors.batching.scheduler import Scheduler
from mlx_serving.actors.messages.admission import QueueObserved, ReplicaDown, ReplicaUp, SequencesLost
from mlx_serving.actors.messages.batching import (
    CacheShared,
    PrefixesHeld,
    SequenceAborted,
    SequencePaused,
    SequenceQueued,
    SequenceResumed,
    SequencesEnded,
)
from mlx_serving.actors.messages.envelope import Envelope
from mlx_serving.actors.messages.generation import CacheGranted, SequenceAssigned, SequencesDropped

OBSERVE_SECONDS = 0.25


class BatchingActor(Actor):
    """Answers for when and where."""

    name = "batching"
    interval = OBSERVE_SECONDS

    def set_up(self, node: Node) -> None:
        self.node = node
        self._scheduler = Scheduler(node.settings.batching.ageing_seconds, node.settings.batching.load_tokens)
        self._dirty = False
        self._shares: dict[str, int] = {}
        self._models: dict[str, str] = {}
        self._observed: QueueObserved | None = None
        self._handlers: dict[type, Callable[[Any], None]] = {
            SequenceQueued: self._queued,
            SequenceAborted: self._aborted,
            SequencePaused: lambda m: self._relay(self._scheduler.pause(m.sequence_id), m),
            SequenceResumed: lambda m: self._relay(self._scheduler.resume(m.sequence_id), m),
            SequencesEnded: self._ended,
            PrefixesHeld: self._scheduler.prefixes_held,
            CacheShared: self._cache_shared,
            ReplicaUp: self._replica_up,
            ReplicaDown: self._replica_down,
        }

    def handle(self, envelope: Envelope) -> None:
        handler = self._handlers.get(type(envelope.message))
        if handler is None:
            self.node.log.warning("unexpected message", message=type(envelope.message).__name__)
            return
        handler(envelope.message)

    def settings_changed(self) -> None:
        self._scheduler.set_ageing(self.node.settings.batching.ageing_seconds)
        self._scheduler.load_tokens = self.node.settings.batching.load_tokens

    @property
    def pending(self) -> int:
        return int(self._dirty)

    def work(self) -> None:
        """Decide once for all messages of one drain."""
        self._dirty = False
        self.steps += 1
        now = self.node.clock()
        for assignment in self._scheduler.decide(now):
            if not self.node.tell(assignment.replica, SequenceAssigned(assignment.sequence, now)):
                self._lose(assignment.replica, (assignment.sequence.sequence_id,), "its inbox is full")

    def tick(self, now: float) -> None:
        observed = self._scheduler.observe(now)
        if observed == self._observed and not observed.waiting:
            return
        self._observed = observed
        self.node.tell("admission", observed)
        self.node.emit(observed)

    def _queued(self, message: SequenceQueued) -> None:
        self._scheduler.enqueue(message)
        self._dirty = True

    def _aborted(self, message: SequenceAborted) -> None:
        self._relay(self._scheduler.abort(message.sequence_id), message)
        self._dirty = True

    def _ended(self, message: SequencesEnded) -> None:
        self._scheduler.ended(message.replica, message.sequence_ids)
        self._dirty = True

    def _replica_up(self, message: ReplicaUp) -> None:
        if self._scheduler.replica_up(message.replica, message.model.name, message.slots, message.kv_bytes):
            self.node.tell(message.replica, SequencesDropped())
            self._models[message.replica] = message.model.name
            self._grant(message.replica, message.model.name)
        self._dirty = True

    def _cache_shared(self, message: CacheShared) -> None:
        self._shares = message.kv_bytes
        kept = self.node.settings.generation.prefix_cache.share_of
        self._scheduler.share({model: share - kept(share) for model, share in self._shares.items()})
        for replica, model in self._models.items():
            self._grant(replica, model)
        self._dirty = True

    def _grant(self, replica: str, model: str) -> None:
        if model in self._shares:
            self.node.tell(replica, CacheGranted(self._shares[model]))

    def _replica_down(self, message: ReplicaDown) -> None:
        lost = self._scheduler.replica_down(message.replica)
        self._models.pop(message.replica, None)
        self.node.forget(message.replica)
        if lost:
            self._lose(message.replica, lost, message.reason)
        self._dirty = True

    def _lose(self, replica: str, lost: tuple[int, ...], reason: str) -> None:
        self._scheduler.ended(replica, lost)
        self.node.tell("admission", SequencesLost(replica, lost, reason))

    def _relay(self, replica: str | None, message: Any) -> None:
        if replica is not None:
            self.node.tell(replica, message)
