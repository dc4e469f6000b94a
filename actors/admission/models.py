"""Loading, unloading and losing models, as admission sees it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlx_serving.actors.admission.catalogue import Catalogue, Served
from mlx_serving.actors.admission.rendering import RenderingPool
from mlx_serving.actors.admission.requests import Requests
from mlx_serving.actors.base import Node
from mlx_serving.actors.errors import ActorUnavailable, ErrorInfo, ModelLoadFailed, ModelNotFound, describe
from mlx_serving.actors.messages.admission import (
    ModelLoadRequested,
    ModelUnloadRequested,
    ReplicaDown,
    ReplicaUp,
)
from mlx_serving.actors.messages.frontend import Done, ModelLoaded, Refused
from mlx_serving.actors.messages.supervision import ModelServes, ReplicaReleased, ReplicaRequested
from mlx_serving.actors.models.store import ModelStore
from mlx_serving.actors.models.tokenizer import TextTokenizer

Answer = Callable[[Any], None]
"""Answers one question of a frontend."""


class Models:
    """Keeps the catalogue true and answers those who wait for a load or an unload."""

    def __init__(self, node: Node, catalogue: Catalogue, pool: RenderingPool, requests: Requests) -> None:
        self._node = node
        self._catalogue = catalogue
        self._pool = pool
        self._requests = requests
        self._store = ModelStore(node.home)
        self._trusted = [Path(folder).expanduser() for folder in node.settings.models.trusted_folders]
        self._loads: dict[str, list[Answer]] = {}
        self._unloads: dict[str, list[Answer]] = {}

    def refresh_stored(self, then: Callable[[], None] = lambda: None) -> None:
        """Read the names of the stored models again, beside the loop."""

        def landed(names: tuple[str, ...] | None, error: BaseException | None) -> None:
            self._requests.stored = names or ()
            then()

        self._pool.submit(lambda: tuple(record.name for record in self._store.list()), landed)

    def load(self, message: ModelLoadRequested, answer: Answer) -> None:
        """Answer once the model serves; loads of one model coalesce."""

        def landed(record: Any, error: BaseException | None) -> None:
            if error is not None:
                answer(Refused(describe(error)))
                return
            served = self._catalogue.get(record.name)
            if served is not None and served.unloading:
                text = f"model {served.name!r} is being unloaded; load it again once that is done"
                answer(Refused(ErrorInfo(ActorUnavailable.code, text, retry_after=1.0, model=served.name)))
                return
            if served is not None and served.ready:
                answer(ModelLoaded(self._listed(served)))
                return
            self._catalogue.expect(record.name)
            self._loads.setdefault(record.name, []).append(answer)
            self._node.tell("supervisor", ReplicaRequested(message.model))

        self._pool.submit(lambda: self._store.resolve(message.model, self._trusted), landed)

    def unload(self, message: ModelUnloadRequested, answer: Answer) -> None:
        """Take no new requests for the model, let its streams end, stop its replicas, answer."""
        served = self._catalogue.get(message.model)
        if served is None:
            error = ErrorInfo(
                ModelNotFound.code, f"model {message.model!r} is not loaded", "model", model=message.model
            )
            answer(Refused(error))
            return
        served.unloading, served.released = True, False
        self._unloads.setdefault(served.name, []).append(answer)
        self.release_idle()

    def release_idle(self) -> None:
        """Stop the replicas of models that are being unloaded and have no stream left."""
        for served in self._catalogue:
            if served.unloading and not served.released and not self._requests.streams.of_model(served.name):
                served.released = True
                self._node.tell("supervisor", ReplicaReleased(served.name))

    def replica_up(self, message: ReplicaUp) -> None:
        served = self._catalogue.expect(message.model.name)
        served.replicas[message.replica] = message
        served.info, served.is_default = message.model, message.is_default
        served.loaded_at = time.time()
        served.restarting = False
        if served.tokenizer is not None:
            self._serves(served)
            return
        served.reason = "its tokenizer is loading"
        folder = Path(message.model.path)
        self._pool.submit(
            lambda: TextTokenizer.load(folder),
            lambda found, error: self._tokenizer_loaded(served, found, error),
        )

    def _tokenizer_loaded(self, served: Served, found: TextTokenizer | None, error: BaseException | None) -> None:
        if error is not None:
            served.reason = f"its tokenizer cannot be loaded: {error}"
            self._answer_loads(served.name, Refused(describe(error)))
            return
        served.tokenizer = found
        self._serves(served)

    def _serves(self, served: Served) -> None:
        served.reason = ""
        self._node.tell("supervisor", ModelServes(served.name))
        self._answer_loads(served.name, ModelLoaded(self._listed(served)))

    def replica_down(self, message: ReplicaDown) -> None:
        served = self._catalogue.get(message.model)
        if served is None:
            return
        served.replicas.pop(message.replica, None)
        served.restarting, served.reason = message.restarting, message.reason
        if served.replicas or message.restarting:
            return
        self._requests.fail_all(
            self._requests.streams.of_model(served.name), ActorUnavailable(message.reason, model=served.name)
        )
        error = message.error or ErrorInfo(ModelLoadFailed.code, message.reason, model=served.name)
        self._answer_loads(served.name, Refused(error))
        for answer in self._unloads.pop(served.name, []):
            answer(Done())
        if not served.is_default or served.unloading:
            self._catalogue.remove(served.name)

    def _answer_loads(self, name: str, message: Any) -> None:
        for answer in self._loads.pop(name, []):
            answer(message)

    def _listed(self, served: Served) -> Any:
        return next(each for each in self._catalogue.listed() if each.info.name == served.name)
