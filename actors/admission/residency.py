"""Which models are in memory: who comes in, who has to leave for it, who has idled for too long. Pure.

Rules:
1. A model counts with its weights and the least cache that it is of use with. What is planned never exceeds the limit,
   but for models that were loaded at start or turned out larger than predicted: others leave as soon as they may.
2. Room is made by those least recently used, of those that are neither pinned nor busy, and by no more than it takes.
3. A model that is wanted waits until the bytes are free in fact; those told to leave still count until they are gone.
4. What the limit leaves beside weights and least caches is divided equally between the models' caches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import attrs

from mlx_serving.actors.errors import ModelTooLarge, Overloaded
from mlx_serving.config.schema import Generation

LEAST_TOKENS = 8192
"""Tokens of cache without which a model with such a context is of little use."""

Phase = Literal["waiting", "loading", "resident", "leaving"]


@attrs.frozen
class Need:
    """Bytes that a model takes: its weights, and the least cache."""

    weights: int
    cache: int

    @property
    def bytes(self) -> int:
        return self.weights + self.cache


def need_of(weight_bytes: int, context_length: int, kv_bytes_per_token: int, settings: Generation) -> Need:
    """The need of a model, on disk or loaded."""
    return Need(weight_bytes, settings.kv_bytes or min(context_length, LEAST_TOKENS) * kv_bytes_per_token)


@attrs.define(eq=False)
class Resident:
    """One model that is in memory, on its way in or on its way out. `last_used` is monotonic seconds."""

    name: str
    need: Need
    phase: Phase
    last_used: float


class Residency:
    """The models of one machine. Those that a call returns as having to leave are leaving from then on."""

    def __init__(self, limit: int, is_busy: Callable[[str], bool], pinned: Iterable[str] = ()) -> None:
        """`limit` in bytes; `is_busy` tells whether a stream lives on a model."""
        self.limit = limit
        self.pinned = set(pinned)
        self._is_busy = is_busy
        self._models: dict[str, Resident] = {}

    def get(self, name: str) -> Resident | None:
        return self._models.get(name)

    @property
    def bytes(self) -> int:
        """What the models that are in memory, come or go take together."""
        return sum(each.need.bytes for each in self._models.values() if each.phase != "waiting")

    def sizes(self) -> dict[str, int]:
        """Bytes of each model that is in memory, comes or goes."""
        return {name: each.need.bytes for name, each in self._models.items() if each.phase != "waiting"}

    def used(self, name: str, now: float) -> None:
        """A stream of the model began or ended."""
        if name in self._models:
            self._models[name].last_used = now

    def claim(self, name: str, need: Need, now: float) -> tuple[str, ...]:
        """Plan for a model that is wanted; the models that have to leave for it. One that has a place keeps it.

        Raises ModelTooLarge when it can never fit, Overloaded when it cannot fit beside those that are busy.
        """
        if name in self._models:
            self.used(name, now)
            return ()
        need = self._fitted(need)
        leaving = self._make_room(self._planned() + need.bytes - self.limit)
        if leaving is None:
            raise self._no_room(name, need)
        self._models[name] = Resident(name, need, "waiting", now)
        return leaving

    def startable(self) -> tuple[str, ...]:
        """Wanted models whose bytes are free now; they are loading from here on."""
        started = []
        for each in self._models.values():
            if each.phase == "waiting" and self.bytes + each.need.bytes <= self.limit:
                each.phase = "loading"
                started.append(each.name)
        return tuple(started)

    def arrived(self, name: str, need: Need, now: float) -> tuple[str, ...]:
        """A model is in memory and takes this; the models that have to leave if that is more than was planned."""
        known = self._models.get(name)
        last_used = known.last_used if known is not None else now
        self._models[name] = Resident(name, self._fitted(need), "resident", last_used)
        return self.relieve(but=name)

    def relieve(self, but: str = "") -> tuple[str, ...]:
        """The models that have to leave because all together take more than the limit; the last one never does."""
        present = [each for each in self._models.values() if each.phase != "leaving"]
        if len(present) < 2:
            return ()
        latest = but or max(present, key=lambda each: each.last_used).name
        return self._make_room(self._planned() - self.limit, but=latest, as_far_as_possible=True) or ()

    def leave(self, name: str) -> None:
        """A model was told to leave."""
        if name in self._models:
            self._models[name].phase = "leaving"

    def left(self, name: str) -> None:
        """A model is gone, or did not come."""
        self._models.pop(name, None)

    def idle(self, now: float, seconds: float) -> tuple[str, ...]:
        """Models that nobody has used for so long; they have to leave."""
        names = tuple(each.name for each in self._removable() if now - each.last_used >= seconds)
        for name in names:
            self.leave(name)
        return names

    def caches(self) -> dict[str, int]:
        """Bytes that each model's cache may take, on every replica of it."""
        if not self._models:
            return {}
        spare = max(0, self.limit - sum(each.need.bytes for each in self._models.values())) // len(self._models)
        return {name: each.need.cache + spare for name, each in self._models.items()}

    def _fitted(self, need: Need) -> Need:
        """A model whose weights fit may come with less cache than it would like."""
        return Need(need.weights, min(need.cache, max(0, self.limit - need.weights)))

    def _planned(self) -> int:
        return sum(each.need.bytes for each in self._models.values() if each.phase != "leaving")

    def _removable(self) -> list[Resident]:
        """Those that may leave, the least recently used first."""
        may = [
            each
            for each in self._models.values()
            if each.phase == "resident" and each.name not in self.pinned and not self._is_busy(each.name)
        ]
        return sorted(may, key=lambda each: each.last_used)

    def _make_room(self, excess: int, but: str = "", as_far_as_possible: bool = False) -> tuple[str, ...] | None:
        """Let models leave until `excess` bytes are gone; None, and nobody leaves, when that is not possible."""
        chosen: list[Resident] = []
        for each in self._removable() if excess > 0 else ():
            if excess > 0 and each.name != but:
                chosen.append(each)
                excess -= each.need.bytes
        if excess > 0 and not as_far_as_possible:
            return None
        for each in self._spared(chosen, -excess):
            chosen.remove(each)
        for each in chosen:
            each.phase = "leaving"
        return tuple(each.name for each in chosen)

    @staticmethod
    def _spared(chosen: list[Resident], surplus: int) -> list[Resident]:
        """Those that need not leave after all, because a larger one chosen later is enough."""
        spared = []
        for each in reversed(chosen):
            if each.need.bytes <= surplus:
                spared.append(each)
                surplus -= each.need.bytes
        return spared

    def _no_room(self, name: str, need: Need) -> Exception:
        text = f"model {name!r} needs {_mib(need.bytes)} ({_mib(need.weights)} of weights, {_mib(need.cache)} of cache)"
        pinned = sum(each.need.bytes for each in self._models.values() if each.name in self.pinned)
        if need.bytes > self.limit - pinned:
            held = f", and pinned models hold {_mib(pinned)} of it" if pinned else ""
            return ModelTooLarge(
                f"{text} and the limit for models is {_mib(self.limit)}{held}; raise models.memory_bytes"
                + (" or unpin one" if pinned else ""),
                field="model",
                model=name,
            )
        held = ", ".join(f"{each.name} {_mib(each.need.bytes)}" for each in self._models.values())
        return Overloaded(
            f"{text}; of the limit of {_mib(self.limit)} these are in use and cannot leave now: {held}",
            retry_after=5.0,
            model=name,
        )


def _mib(count: int) -> str:
    return f"{-(-count // (1 << 20))} MiB"
