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


@attrs.define(eq=False)
class Served:
    """One model. It serves once a replica is up and its tokenizer is loaded; `restarting` keeps its queue alive."""

    name: str
    info: ModelInfo | None = None
    tokenizer: TextTokenizer | None = None
    replicas: dict[str, ReplicaUp] = attrs.field(factory=dict)
    is_default: bool = False
    unloading: bool = False
    released: bool = False
    """Its replicas were told to end."""
    restarting: bool = False
    loaded_at: float = 0.0
    reason: str = "its replica is starting"

    @property
    def ready(self) -> bool:
        return bool(self.replicas) and self.tokenizer is not None and not self.unloading

    @property
    def state(self) -> str:
        if self.unloading:
            return "unloading"
        if self.ready:
            return "ready"
        return "loading" if self.restarting else "failed"

    @property
    def kv_budget(self) -> int:
        """Bytes of cache on the largest replica."""
        return max((replica.kv_bytes for replica in self.replicas.values()), default=1 << 62)


class Catalogue:
    """Every model that has, had or is getting a replica."""

    def __init__(self) -> None:
        self._models: dict[str, Served] = {}

    def __iter__(self) -> Iterator[Served]:
        return iter(self._models.values())

    def get(self, name: str) -> Served | None:
        return self._models.get(name)

    def expect(self, name: str) -> Served:
        """The entry of a model whose replica is on its way."""
        served = self._models.setdefault(name, Served(name))
        served.restarting, served.unloading = True, False
        return served

    def remove(self, name: str) -> None:
        self._models.pop(name, None)

    @property
    def default(self) -> Served | None:
        return next((served for served in self._models.values() if served.is_default), None)

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
            return False, "the default model is loading"
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
    near = difflib.get_close_matches(name, sorted({*served, *stored}), n=3, cutoff=0.4) or served[:3]
    hint = f"; near names: {', '.join(near)}" if near else ""
    return ModelNotFound(f"no model is called {name!r}{hint}", field="model", model=name)
