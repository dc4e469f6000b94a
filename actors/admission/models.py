"""Bringing models in, keeping and losing them, as admission sees it: `residency` decides, this carries it out.

Longer than most modules: a load, an unload and a replica that ends wait for each other, on the same few dictionaries.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from mlx_serving.actors.admission.catalogue import Catalogue, Route, Served
from mlx_serving.actors.admission.library import Library
from mlx_serving.actors.admission.rendering import RenderingPool
from mlx_serving.actors.admission.requests import Requests
from mlx_serving.actors.admission.residency import Need, Residency, need_of
from mlx_serving.actors.base import Node
from mlx_serving.actors.errors import (
    ActorUnavailable,
    ErrorInfo,
    ModelLoadFailed,
    ModelNotFound,
    ServingError,
    describe,
)
from mlx_serving.actors.memory import machine_bytes
from mlx_serving.actors.messages.admission import (
    ModelLoadRequested,
    ModelPinRequested,
    ModelUnloadRequested,
    ReplicaDown,
    ReplicaUp,
)
from mlx_serving.actors.messages.batching import CacheShared
from mlx_serving.actors.messages.frontend import Done, ModelLoaded, Refused, ServedModel
from mlx_serving.actors.messages.supervision import ModelServes, ReplicaReleased, ReplicaRequested
from mlx_serving.actors.messages.telemetry import MemoryShared, ModelArrived, ModelLeft
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.actors.models.tokenizer import TextTokenizer

Answer = Callable[[Any], None]
"""Answers one question of a frontend."""
Reached = Callable[[Served | None, ErrorInfo | None], None]
"""Called once with a model that serves, or with why it does not."""

FAILURE_SECONDS = 30.0
"""How long a model that could not be loaded is not tried again for a request, which would cost others their place."""


class Models:
    """Keeps the catalogue true, and answers those who wait for a model."""

    def __init__(self, node: Node, catalogue: Catalogue, pool: RenderingPool, requests: Requests) -> None:
        self._node = node
        self._catalogue = catalogue
        self._pool = pool
        self._requests = requests
        self._settings = node.settings.models
        self.library = Library(node.home, self._settings)
        self._memory = machine_bytes()
        self._residency = Residency(self._limit(), requests.streams.uses, self._settings.pinned)
        self._starting = {self._settings.default, *self._settings.preload}
        """Models that the supervisor starts by itself, until it tells of them."""
        self._waiting: dict[str, list[Reached]] = {}
        self._resolving: set[str] = set()
        self._wanted_at: dict[str, float] = {}
        self._reasons: dict[str, str] = {}
        self._failures: dict[str, tuple[float, ErrorInfo]] = {}
        self._unloads: dict[str, list[Answer]] = {}
        self._caches: dict[str, int] = {}
        self._memory_shared: MemoryShared | None = None
        self._began = node.clock()
        catalogue.default_name = self._settings.default if self._settings.load_on_demand else None

    # --- what there is ----------------------------------------------------------------------------------------------

    def refresh_stored(self, then: Callable[[], None] = lambda: None) -> None:
        """Read again what is on disk, beside the loop."""

        def landed(_: None, error: BaseException | None) -> None:
            self._requests.stored = tuple(self.library.records)
            then()

        self._pool.submit(self.library.read, landed)

    def listed(self) -> tuple[ServedModel, ...]:
        """Models that have, had or are getting a replica."""
        return tuple(self._completed(each) for each in self._catalogue.listed())

    def available(self) -> tuple[ServedModel, ...]:
        """Stored models that a request would load."""
        if not self._settings.load_on_demand:
            return ()
        records = [each for name, each in self.library.records.items() if self._catalogue.get(name) is None]
        return tuple(self._stored(each) for each in records)

    def _stored(self, record: ModelRecord) -> ServedModel:
        state = "loading" if record.name in self._starting else "stored"
        made = ServedModel(record.info(), state, record.name == self._settings.default, 0, 0.0)
        return attrs.evolve(self._completed(made), memory_bytes=self._predicted(record).bytes)

    def _completed(self, model: ServedModel) -> ServedModel:
        name, resident = model.info.name, self._residency.get(model.info.name)
        age = 0.0 if resident is None else self._node.clock() - resident.last_used
        return attrs.evolve(
            model,
            memory_bytes=0 if resident is None else resident.need.bytes,
            last_used=0.0 if resident is None else time.time() - age,
            pinned=name in self._residency.pinned,
            adapters=self.library.adapters_of(name),
        )

    def route(self, name: str | None) -> Route:
        """Where a request that names `name` goes; a model that was fetched meanwhile is known from here on.

        Raises ModelNotFound, or ActorUnavailable while the default model is not known.
        """
        for each in () if name is None else {name, name.rpartition(":")[0]}:
            if each not in self._requests.stored and self._catalogue.get(each) is None and self.library.has(each):
                self._requests.stored = (*self._requests.stored, each)
        return self._catalogue.find(name, self._requests.stored)

    def used(self, name: str) -> None:
        """A request for the model came or ended."""
        self._residency.used(name, self._node.clock())

    def adapter_identity(self, base: str, adapter: str) -> str:
        """What replicas call an adapter; raises what is wrong with it. Touches the disk."""
        return self.library.adapters.show(base, adapter).identity

    # --- wanting a model --------------------------------------------------------------------------------------------

    def at_hand(self, name: str) -> Served | None:
        """A model that takes requests now; None when `bring` would load it. Raises why neither is so."""
        served = self._catalogue.get(name)
        if served is not None and served.takes_requests:
            return served
        if not self._settings.load_on_demand:
            return self._catalogue.route(name, self._requests.stored)
        until, error = self._failures.get(name, (0.0, None))
        if error is not None and self._node.clock() < until:
            raise error.to_exception()
        return None

    def bring(self, name: str, reached: Reached) -> None:
        """Load a model if need be; loads of one model coalesce."""
        served = self._catalogue.get(name)
        if served is not None and served.takes_requests:
            reached(served, None)
            return
        self._waiting.setdefault(name, []).append(reached)
        self._want(name)

    def reach(self, name: str | None, answer: Answer, then: Callable[[Served], None]) -> None:
        """For a question about a model: `then` with it once it serves, or answer why it does not."""
        route = self.route(name)

        def reached(served: Served | None, error: ErrorInfo | None) -> None:
            if served is not None:
                then(served)
            else:
                answer(Refused(error or describe(ActorUnavailable("the model is gone"))))

        served = self.at_hand(route.model)
        if served is not None:
            then(served)
        else:
            self.bring(route.model, reached)

    def _want(self, name: str) -> None:
        """Plan for a model, unless it is on its way; one that is leaving is planned for again when it is gone."""
        if self._residency.get(name) is not None or name in self._resolving:
            return
        self._resolving.add(name)
        self._wanted_at.setdefault(name, self._node.clock())

        def landed(record: ModelRecord | None, error: BaseException | None) -> None:
            self._resolving.discard(name)
            self._plan(name, record, error)

        self._pool.submit(lambda: self.library.resolve(name), landed)

    def _plan(self, name: str, record: ModelRecord | None, error: BaseException | None) -> None:
        try:
            if error is not None:
                raise error
            assert record is not None
            leaving = self._residency.claim(name, self._predicted(record), self._node.clock())
        except Exception as failure:
            if not isinstance(failure, ServingError):
                self._node.log.error("model cannot be planned for", model=name, error=repr(failure))
            self._tell_waiting(name, None, describe(failure))
            return
        served = self._catalogue.expect(name)
        served.info = served.info or record.info()
        self._evict(leaving, "memory")
        self._start_wanted()

    def _predicted(self, record: ModelRecord) -> Need:
        return self._need(self.library.weight_bytes(record), record.context_length, record.kv_bytes_per_token)

    def _need(self, weights: int, context_length: int, kv_bytes_per_token: int) -> Need:
        one = need_of(weights, context_length, kv_bytes_per_token, self._node.settings.generation)
        return Need(one.weights * self._settings.replicas, one.cache * self._settings.replicas)

    def _limit(self) -> int:
        fraction = self._node.settings.generation.memory_fraction
        return self._settings.memory_bytes or int(fraction * self._memory)

    def _start_wanted(self) -> None:
        for name in self._residency.startable():
            self._node.tell("supervisor", ReplicaRequested(name))
        self._share()

    def _share(self) -> None:
        """Divide the memory for caches between the models that are there or coming."""
        settings = self._node.settings.generation
        shares = self._residency.caches().items()
        caches = {name: settings.kv_bytes or share // self._settings.replicas for name, share in shares}
        # The rest is for rows that run.
        caches = {name: share - settings.prefix_cache.share_of(share) for name, share in caches.items()}
        memory = MemoryShared(self._residency.sizes(), self._residency.limit)
        if memory != self._memory_shared:
            self._memory_shared = memory
            self._node.emit(memory)
        if caches == self._caches:
            return
        self._caches = caches
        kept = self._node.settings.generation.prefix_cache.share_of
        for served in self._catalogue:
            share = caches.get(served.name)
            served.cache_bytes = None if share is None else share - kept(share)
        self._node.tell("batching", CacheShared(caches))

    def _tell_waiting(self, name: str, served: Served | None, error: ErrorInfo | None) -> None:
        self._wanted_at.pop(name, None)
        for reached in self._waiting.pop(name, []):
            reached(served, error)

    # --- what frontends ask -----------------------------------------------------------------------------------------

    def load(self, message: ModelLoadRequested, answer: Answer) -> None:
        """Answer once the model serves."""

        def reached(served: Served | None, error: ErrorInfo | None) -> None:
            answer(ModelLoaded(self._listed(served)) if served is not None else Refused(error or _gone(message.model)))

        self._failures.pop(message.model, None)
        self.bring(message.model, reached)

    def unload(self, message: ModelUnloadRequested, answer: Answer) -> None:
        """Take no new requests for the model, let its streams end, stop its replicas, answer."""
        served = self._catalogue.get(message.model)
        if served is None:
            text = f"model {message.model!r} is not loaded"
            answer(Refused(ErrorInfo(ModelNotFound.code, text, "model", model=message.model)))
            return
        self._unloads.setdefault(served.name, []).append(answer)
        if not served.unloading:
            served.unloading, served.released = True, False
            self._reasons[served.name] = "request"
        self._release()

    def pin(self, message: ModelPinRequested, answer: Answer) -> None:
        """From now on the model is kept, or is no longer; until the server ends."""
        name = self.route(message.model).model
        if message.pinned:
            self._residency.pinned.add(name)
        else:
            self._residency.pinned.discard(name)
        answer(Done())

    # --- leaving ----------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Let go who is idle for too long, who is in the way, and who was told to and has no stream left."""
        idle = self._node.settings.models.idle_seconds
        if idle:
            self._evict(self._residency.idle(now, idle), "idle")
        self._evict(self._residency.relieve(), "memory")
        self._release()

    def _evict(self, names: tuple[str, ...], reason: str) -> None:
        for name in names:
            served = self._catalogue.get(name)
            if served is not None:
                self._node.log.info("unloading", model=name, reason=reason)
                self._reasons[name] = reason
                served.unloading, served.released = True, False
        if names:
            self._release()

    def _release(self) -> None:
        """Stop the replicas of models that are to leave and have no stream left."""
        for served in list(self._catalogue):
            if served.unloading and not served.released and not self._requests.streams.of_model(served.name):
                served.released = True
                self._let_go(served.name)

    def _let_go(self, name: str) -> None:
        resident = self._residency.get(name)
        if resident is not None and resident.phase == "waiting":
            self._down(name, "it was unloaded before it was loaded", None)
        else:
            self._residency.leave(name)
            self._node.tell("supervisor", ReplicaReleased(name))

    # --- what the supervisor tells ----------------------------------------------------------------------------------

    def replica_up(self, message: ReplicaUp) -> None:
        name = message.model.name
        self._starting.discard(name)
        known = self._catalogue.get(name)
        if known is not None and known.unloading:
            known.replicas[message.replica] = message  # it was told to end already
            return
        served = self._catalogue.expect(name)
        served.replicas[message.replica] = message
        served.info, served.is_default = message.model, message.is_default
        served.loaded_at = time.time()
        served.restarting = False
        self._settle(message)
        if served.tokenizer is not None:
            self._serves(served)
            return
        served.reason = "its tokenizer is loading"
        folder, parallel = Path(message.model.path), self._node.settings.admission.parallel_tokenizer
        self._pool.submit(
            lambda: TextTokenizer.load(folder, parallel).prepared(),
            lambda found, error: self._tokenizer_loaded(served, found, error),
        )

    def _settle(self, message: ReplicaUp) -> None:
        """Count a model with what it takes in fact."""
        if message.memory_bytes and message.memory_bytes != self._memory:
            self._memory = message.memory_bytes
            self._residency.limit = self._limit()
        info, weights = message.model, message.weight_bytes
        self.library.weighed(info.fingerprint, weights)
        if message.is_default and not self._settings.load_on_demand:
            self._residency.pinned.add(info.name)  # nothing would bring it back
        need = self._need(weights, info.context_length, info.kv_bytes_per_token)
        self._evict(self._residency.arrived(info.name, need, self._node.clock()), "memory")
        self._share()

    def _tokenizer_loaded(self, served: Served, found: TextTokenizer | None, error: BaseException | None) -> None:
        if error is not None:
            served.reason, served.tokenizer_failed = f"its tokenizer cannot be loaded: {error}", True
            self._tell_waiting(served.name, None, describe(error))
            return
        served.tokenizer = found
        self._serves(served)

    def _serves(self, served: Served) -> None:
        served.reason = ""
        now = self._node.clock()
        self._failures.pop(served.name, None)
        if not served.has_served:
            served.has_served = True
            self._node.emit(ModelArrived(served.name, now - self._wanted_at.get(served.name, self._began)))
        self._node.tell("supervisor", ModelServes(served.name))
        self._tell_waiting(served.name, served, None)

    def replica_down(self, message: ReplicaDown) -> None:
        if not message.restarting:
            self._starting.discard(message.model)
        served = self._catalogue.get(message.model)
        if served is None:
            error = message.error or ErrorInfo(ModelLoadFailed.code, message.reason, model=message.model)
            self._tell_waiting(message.model, None, error)
            return
        served.replicas.pop(message.replica, None)
        served.restarting, served.reason = message.restarting, message.reason
        if not served.replicas and not message.restarting:
            self._down(served.name, message.reason, message.error)

    def _down(self, name: str, reason: str, error: ErrorInfo | None) -> None:
        """A model is gone: for those who wait, load it again if it was only told to go."""
        served = self._catalogue.get(name)
        assert served is not None
        self._residency.left(name)
        self._node.emit(ModelLeft(name, self._reasons.pop(name, "lost")))
        gone = ActorUnavailable(reason, model=name)
        self._requests.fail_all(self._requests.streams.of_model(name), gone)
        was_told, served.restarting, served.has_served = served.unloading, False, False
        if not served.is_default or was_told:
            self._catalogue.remove(name)
        for answer in self._unloads.pop(name, []):
            answer(Done())
        if was_told and name in self._waiting:
            self._want(name)
        elif not was_told:
            error = error or ErrorInfo(ModelLoadFailed.code, reason, model=name)
            self._failures[name] = (self._node.clock() + FAILURE_SECONDS, error)
            self._tell_waiting(name, None, error)
        self._start_wanted()

    def _listed(self, served: Served) -> ServedModel:
        return next(each for each in self.listed() if each.info.name == served.name)


def _gone(name: str) -> ErrorInfo:
    return ErrorInfo(ActorUnavailable.code, f"model {name!r} was unloaded", model=name)
