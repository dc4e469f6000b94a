"""The models that are served: where a name leads, which replicas stand behind it, how each model stands. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

import attrs

from mlx_serving.actors.errors import ActorUnavailable, ModelNotFound, ModelNotLoaded, ServingError
from mlx_serving.actors.messages.admission import ReplicaUp
from mlx_serving.actors.messages.frontend import ServedModel
from mlx_serving.actors.messages.values import ModelInfo
from mlx_serving.actors.models.tokenizer import TextTokenizer


@attrs.frozen
class Route:
    """Where a request goes: the name of a model, and the LoRA adapter it chose, empty for none."""

    model: str
    adapter: str = ""

    @property
    def name(self) -> str:
        """As callers write it."""
        return f"{self.model}:{self.adapter}" if self.adapter else self.model


@attrs.define(eq=False)
class Served:
    """One model. It serves once a replica is up and its tokenizer is loaded; `restarting` keeps its queue alive."""

    name: str
    info: ModelInfo | None = None
    tokenizer: TextTokenizer | None = None
    tokenizer_failed: bool = False
    replicas: dict[str, ReplicaUp] = attrs.field(factory=dict)
    is_default: bool = False
    unloading: bool = False
    released: bool = False
    """Its replicas were told to end."""
    restarting: bool = False
    has_served: bool = False
    """Since it was loaded; a replica that comes back is no load."""
    loaded_at: float = 0.0
    reason: str = "its replica is starting"
    cache_bytes: int | None = None
    """What the cache of each replica may take, while models share the memory."""

    @property
    def ready(self) -> bool:
        return bool(self.replicas) and self.tokenizer is not None and not self.unloading

    @property
    def takes_requests(self) -> bool:
        """Whether requests may queue: it serves, or did and is on its way back."""
        return self.tokenizer is not None and not self.unloading and bool(self.replicas or self.restarting)

    @property
    def state(self) -> str:
        if self.unloading:
            return "unloading"
        if self.ready:
            return "ready"
        on_its_way = self.restarting or (bool(self.replicas) and not self.tokenizer_failed)
        return "loading" if on_its_way else "failed"

    @property
    def kv_budget(self) -> int:
        """Bytes of cache on the largest replica."""
        if self.cache_bytes is not None:
            return self.cache_bytes
        return max((replica.kv_bytes for replica in self.replicas.values()), default=1 << 62)


class Catalogue:
    """Every model that has, had or is getting a replica."""

    def __init__(self) -> None:
        self._models: dict[str, Served] = {}
        self.default_name: str | None = None
        """The default model, while a request for it would load it."""
        self.default_rests = False
        """It was unloaded, and a request for it would load it."""

    def __iter__(self) -> Iterator[Served]:
        return iter(self._models.values())

    def get(self, name: str) -> Served | None:
        return self._models.get(name)

    def expect(self, name: str) -> Served:
        """The entry of a model whose replica is on its way."""
        served = self._models.setdefault(name, Served(name))
        self.default_rests = self.default_rests and name != self.default_name
        served.restarting, served.unloading = True, False
        return served

    def remove(self, name: str) -> None:
        self._models.pop(name, None)
        self.default_rests = self.default_rests or name == self.default_name

    @property
    def default(self) -> Served | None:
        return next((served for served in self._models.values() if served.is_default), None)

    def find(self, name: str | None, stored: Iterable[str]) -> Route:
        """Where `name` leads: a model, or `model:adapter`; None is the default model.

        Raises ModelNotFound with near names, ActorUnavailable when the default model is not known yet.
        """
        if name is None:
            default = self.default.name if self.default is not None else self.default_name
            if default is None:
                raise _unknown(None, [], [])
            return Route(default)
        found = self._known(name, stored)
        if found is not None:
            return Route(found)
        base, colon, adapter = name.rpartition(":")
        found = self._known(base, stored) if colon else None
        if found is None or not adapter:
            raise _unknown(name, list(self._models), list(stored))
        return Route(found, adapter)

    def _known(self, name: str, stored: Iterable[str]) -> str | None:
        served = self._by_name(name)
        if served is not None:
            return served.name
        folded = name.casefold()
        return name if name in stored else next((each for each in stored if each.casefold() == folded), None)

    def route(self, name: str | None, stored: Iterable[str]) -> Served:
        """The model for a request that names `name` (None: the default).

        Raises ModelNotFound with near names, ModelNotLoaded when it is only stored, ActorUnavailable when it is
        known and cannot serve.
        """
        served = self.default if name is None else self._by_name(name)
        if served is None:
            raise _unknown(name, list(self._models), list(stored))
        if served.unloading:
            raise ModelNotLoaded(f"model {served.name!r} is being unloaded", field="model", model=served.name)
        if served.tokenizer is None or not (served.replicas or served.restarting):
            raise ActorUnavailable(f"model {served.name!r}: {served.reason}", retry_after=2.0, model=served.name)
        return served

    def _by_name(self, name: str) -> Served | None:
        found = self._models.get(name)
        if found is not None:
            return found
        folded = name.casefold()
        return next((each for each in self._models.values() if each.name.casefold() == folded), None)

    def listed(self) -> tuple[ServedModel, ...]:
        return tuple(
            ServedModel(served.info, served.state, served.is_default, len(served.replicas), served.loaded_at)
            for served in self._models.values()
            if served.info is not None
        )

    def readiness(self) -> tuple[bool, str]:
        """Whether the default model serves, and why not."""
        default = self.default
        if default is None:
            return self.default_rests, "" if self.default_rests else "the default model is loading"
        return default.ready, "" if default.ready else f"model {default.name!r}: {default.reason}"


def _unknown(name: str | None, served: list[str], stored: list[str]) -> ServingError:
    if name is None:
        return ActorUnavailable("the default model is loading", retry_after=2.0)
    if name in stored:
        return ModelNotLoaded(
            f"model {name!r} is stored and not loaded; load it first (mlx-serving models load {name})",
            field="model",
            model=name,
        )
    known = sorted({*served, *stored})
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"; near names: {', '.join(near)}" if near else f"; there is {', '.join(known[:5])}" if known else ""
    return ModelNotFound(f"no model is called {name!r}{hint}", field="model", model=name)
