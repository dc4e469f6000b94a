"""The admission actor: the door for frontends, the registry of streams, the way to every other actor."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

from mlx_serving.actors.addresses import DOOR
from mlx_serving.actors.admission.adapters import Adapters
from mlx_serving.actors.admission.caches import Caches
from mlx_serving.actors.admission.catalogue import Catalogue
from mlx_serving.actors.admission.models import Models
from mlx_serving.actors.admission.policy import Gate
from mlx_serving.actors.admission.questions import Questions
from mlx_serving.actors.admission.rendering import RenderingPool
from mlx_serving.actors.admission.requests import Requests
from mlx_serving.actors.admission.warming import Warming
from mlx_serving.actors.base import Actor, Node
from mlx_serving.actors.errors import ActorUnavailable, ProtocolError, describe
from mlx_serving.actors.messages.admission import (
    AdapterAddRequested,
    AdapterRemoveRequested,
    AdaptersRequested,
    CacheClearRequested,
    CacheObserved,
    CacheStatsRequested,
    CacheWarmRequested,
    ClassesShed,
    CreditsReturned,
    DetokenizeRequested,
    DrainStarted,
    FrontendAttached,
    GenerationRequested,
    MetricsRequested,
    ModelLoadRequested,
    ModelPinRequested,
    ModelsRequested,
    ModelUnloadRequested,
    QueueObserved,
    ReplicaDown,
    ReplicaUp,
    RequestCancelled,
    SequencesLost,
    ShutdownRequested,
    StatusRequested,
    SystemObserved,
    TokenizeRequested,
    TokensGenerated,
)
from mlx_serving.actors.messages.envelope import PROTOCOL_VERSION, Envelope
from mlx_serving.actors.messages.frontend import AdmissionAlive, Done, MetricsReported, Refused
from mlx_serving.actors.messages.supervision import Drained, StopRequested
from mlx_serving.actors.transport import Door

DOOR_LIMIT = 256
"""Frontend messages handled before the inbox has its turn."""
TICK_SECONDS = 0.1


class AdmissionActor(Actor):
    """Answers for who and whether."""

    name = "admission"
    interval = TICK_SECONDS

    def set_up(self, node: Node) -> None:
        self.node = node
        self._gate = Gate()
        self._catalogue = Catalogue()
        self._pool = RenderingPool(node.settings.admission.rendering_threads, node.waker.wake)
        self._door = Door(node.bus, node.place.book.of(DOOR), node.refused)
        node.poller.add(self._door)
        self._requests = Requests(
            node,
            self._catalogue,
            self._gate,
            self._pool,
            self._deliver,
            first_id=time.time_ns() // 1000 << 10,
        )
        self._models = Models(node, self._catalogue, self._pool, self._requests)
        self._requests.models = self._models
        self._adapters = Adapters(self._pool, self._models)
        self._caches = Caches(node, self._catalogue)
        self._warming = Warming(node, self._catalogue, self._pool, self._requests.streams)
        self._questions = Questions(node, self._catalogue, self._gate, self._pool, self._requests, self._models)
        self._incarnation = uuid.uuid4().hex
        self._seen: dict[bytes, float] = {}
        self._ticked_at = node.clock()
        self._drain_until: float | None = None
        self._models.refresh_stored()
        self._from_actors = self._actor_handlers()
        self._from_frontends = self._question_handlers()

    def _actor_handlers(self) -> dict[type, Callable[[Any], None]]:
        return {
            TokensGenerated: self._generated,
            SequencesLost: self._lost,
            QueueObserved: self._queue_observed,
            SystemObserved: self._system_observed,
            ReplicaUp: self._models.replica_up,
            ReplicaDown: self._replica_down,
            ClassesShed: self._classes_shed,
            DrainStarted: self._drain_started,
        }

    def _question_handlers(self) -> dict[type, Callable[[Any, Callable[[Any], None]], None]]:
        return {
            TokenizeRequested: self._questions.tokenize,
            DetokenizeRequested: self._questions.detokenize,
            ModelsRequested: self._questions.models,
            StatusRequested: self._questions.status,
            MetricsRequested: self._questions.metrics,
            CacheStatsRequested: self._caches.ask,
            CacheClearRequested: self._caches.ask,
            CacheWarmRequested: self._warming.warm,
            ModelLoadRequested: self._models.load,
            ModelUnloadRequested: self._models.unload,
            ModelPinRequested: self._models.pin,
            AdaptersRequested: self._adapters.list,
            AdapterAddRequested: self._adapters.add,
            AdapterRemoveRequested: self._adapters.remove,
            ShutdownRequested: self._shutdown,
            FrontendAttached: lambda _, answer: answer(AdmissionAlive(self._incarnation, PROTOCOL_VERSION)),
        }

    # --- from the other actors --------------------------------------------------------------------------------------

    def handle(self, envelope: Envelope) -> None:
        if isinstance(envelope.message, MetricsReported):
            self._questions.metrics_reported(envelope)
            return
        if isinstance(envelope.message, CacheObserved | Refused):
            self._caches.answered(envelope)
            return
        handler = self._from_actors.get(type(envelope.message))
        if handler is None:
            self.node.log.warning("unexpected message", message=type(envelope.message).__name__)
            return
        handler(envelope.message)

    def _generated(self, message: TokensGenerated) -> None:
        self._requests.generated(message)
        self._warming.generated(message)

    def _lost(self, message: SequencesLost) -> None:
        self._requests.lost(message)
        self._warming.lost(message)

    def _replica_down(self, message: ReplicaDown) -> None:
        self._models.replica_down(message)
        self._caches.replica_gone(message.replica)
        self._warming.replica_gone(message.replica)

    def _queue_observed(self, message: QueueObserved) -> None:
        self._questions.queue = message

    def _system_observed(self, message: SystemObserved) -> None:
        self._questions.system = message

    def _classes_shed(self, message: ClassesShed) -> None:
        self._gate.shed = message.priorities
        self._gate.shed_reason, self._gate.shed_retry_after = message.reason, message.retry_after

    def _drain_started(self, message: DrainStarted) -> None:
        self._gate.draining = True
        self._drain_until = self.node.clock() + message.seconds

    # --- from frontends ---------------------------------------------------------------------------------------------

    def receive_more(self) -> bool:
        self._pool.deliver()
        for _ in range(DOOR_LIMIT):
            received = self._door.receive()
            if received is None:
                return False
            self._from_frontend(*received)
        return True

    def _from_frontend(self, peer: bytes, envelope: Envelope) -> None:
        self._seen[peer] = self.node.clock()
        message = envelope.message
        match message:
            case CreditsReturned():
                self._requests.returned(peer, message)
            case GenerationRequested():
                self._requests.requested(peer, message, envelope.trace_id)
            case RequestCancelled():
                self._requests.cancelled((peer, message.request_id))
            case _:
                self._answer(peer, envelope)

    def _answer(self, peer: bytes, envelope: Envelope) -> None:
        def answer(message: Any) -> None:
            self._deliver(peer, message, envelope.correlation)

        handler = self._from_frontends.get(type(envelope.message))
        try:
            if handler is None:
                raise ProtocolError(f"{type(envelope.message).__name__} is not for admission")
            if self._gate.draining and isinstance(envelope.message, ModelLoadRequested):
                raise ActorUnavailable("the server is shutting down", retry_after=5.0)
            handler(envelope.message, answer)
        except Exception as error:
            answer(Refused(describe(error)))

    def _shutdown(self, _: ShutdownRequested, answer: Callable[[Any], None]) -> None:
        answer(Done())
        self.node.tell("supervisor", StopRequested())

    def _deliver(self, peer: bytes, message: Any, correlation: int = 0) -> bool:
        return self._door.send(peer, Envelope(message, self.name, correlation))

    # --- time -------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        self._allow_for_own_absence(now)
        self._requests.expire(now)
        self._models.tick(now)
        self._warming.greet()
        self._warming.expire(now)
        self._caches.expire(now)
        timeout = self.node.settings.admission.frontend_timeout
        for peer in [peer for peer, seen in self._seen.items() if now - seen > timeout]:
            del self._seen[peer]
            self._requests.peer_gone(peer)
        if self._drain_until is not None and (not len(self._requests.streams) or now >= self._drain_until):
            self._drain_until = None
            self.node.tell("supervisor", Drained())

    def _allow_for_own_absence(self, now: float) -> None:
        """Whoever could not be heard, because we stood still ourselves, is not gone."""
        absent, self._ticked_at = now - self._ticked_at, now
        if absent > self.node.settings.admission.frontend_timeout / 2:
            self._seen = dict.fromkeys(self._seen, now)

    def tear_down(self, seconds: float) -> None:
        """Fail whoever still waits, then let the pool and the door go."""
        error = ActorUnavailable("the server is shutting down", retry_after=5.0)
        if hasattr(self, "_requests"):
            self._requests.fail_all(self._requests.streams.all(), error)
        if hasattr(self, "_warming"):
            self._caches.refuse_all(describe(error))
            self._warming.refuse_all(describe(error))
        if hasattr(self, "_pool"):
            self._pool.close()
            self._door.close()
