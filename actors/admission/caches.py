"""Questions about prefix caches: passed on to the replicas they are about, answered once all of those have."""

from __future__ import annotations

import itertools

import attrs

from mlx_serving.actors.admission.catalogue import Catalogue, Served
from mlx_serving.actors.admission.models import Answer
from mlx_serving.actors.base import Node
from mlx_serving.actors.errors import ActorUnavailable, ErrorInfo, ModelNotFound
from mlx_serving.actors.messages.admission import CacheClearRequested, CacheObserved, CacheStatsRequested
from mlx_serving.actors.messages.envelope import Envelope
from mlx_serving.actors.messages.frontend import CacheReported, Refused, ReplicaCache


@attrs.define(eq=False)
class _Poll:
    """One question on its way. `waiting` maps each replica that has not answered to its model."""

    answer: Answer
    deadline: float
    waiting: dict[str, str]
    found: list[ReplicaCache] = attrs.field(factory=list)


class Caches:
    """Asks replicas on behalf of frontends."""

    def __init__(self, node: Node, catalogue: Catalogue) -> None:
        self._node = node
        self._catalogue = catalogue
        self._numbers = itertools.count(1)
        self._polls: dict[int, _Poll] = {}

    def ask(self, asked: CacheStatsRequested | CacheClearRequested, answer: Answer) -> None:
        """Raises a ServingError for a model that is not served."""
        chosen = list(self._catalogue) if asked.model is None else [loaded(self._catalogue, asked.model)]
        replicas = {replica: served.name for served in chosen for replica in served.replicas}
        number = next(self._numbers)
        deadline = self._node.clock() + self._node.settings.transport.ask_timeout
        poll = self._polls[number] = _Poll(answer, deadline, replicas)
        for replica in list(replicas):
            if not self._node.tell(replica, asked, correlation=number):
                poll.waiting.pop(replica)
        self._answer_if_done(number)

    def answered(self, envelope: Envelope) -> None:
        """A replica's `CacheObserved`, or `Refused`."""
        poll = self._polls.get(envelope.correlation)
        if poll is None:
            return
        message = envelope.message
        if isinstance(message, CacheObserved):
            model = poll.waiting.pop(message.replica, None)
            if model is not None:
                poll.found.append(ReplicaCache(message.replica, model, message.stats))
            self._answer_if_done(envelope.correlation)
        else:
            del self._polls[envelope.correlation]
            poll.answer(message)

    def replica_gone(self, replica: str) -> None:
        """It will not answer any more."""
        self._node.forget(replica)
        for number, poll in list(self._polls.items()):
            if poll.waiting.pop(replica, None) is not None:
                self._answer_if_done(number)

    def expire(self, now: float) -> None:
        for number, poll in list(self._polls.items()):
            if now >= poll.deadline:
                del self._polls[number]
                silent = ", ".join(poll.waiting)
                poll.answer(Refused(ErrorInfo(ActorUnavailable.code, f"no answer from {silent}", retry_after=1.0)))

    def refuse_all(self, error: ErrorInfo) -> None:
        """Nobody will answer any more."""
        while self._polls:
            _, poll = self._polls.popitem()
            poll.answer(Refused(error))

    def _answer_if_done(self, number: int) -> None:
        poll = self._polls[number]
        if not poll.waiting:
            del self._polls[number]
            poll.answer(CacheReported(tuple(sorted(poll.found, key=lambda each: (each.model, each.replica)))))


def loaded(catalogue: Catalogue, name: str) -> Served:
    """The entry of a model by its name; raises ModelNotFound for one that has no replica."""
    served = catalogue.get(name)
    if served is None:
        raise ModelNotFound(f"model {name!r} is not loaded", field="model", model=name)
    return served
