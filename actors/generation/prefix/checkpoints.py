"""States that are good for one exact prefix only, as those of models that cannot be rolled back. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Generic

import attrs

from mlx_serving.actors.generation.prefix.blocks import P
from mlx_serving.actors.generation.prefix.keys import prefix_key, prefix_keys
from mlx_serving.actors.generation.prefix.recency import Recency


@attrs.define(eq=False)
class Checkpoint(Generic[P]):
    """The state after the first `tokens` tokens of a sequence."""

    key: bytes
    namespace: bytes
    tokens: int
    payload: P
    pins: int = 0
    is_void: bool = False
    """It is not to be trusted."""


class Checkpoints(Generic[P]):
    """Checkpoints by prefix. `ticks` orders uses, here and in whatever shares it."""

    def __init__(self, ticks: Iterator[int]) -> None:
        self._ticks = ticks
        self._by_key: dict[bytes, Checkpoint[P]] = {}
        self._lengths: dict[bytes, Counter[int]] = {}
        self._recency: Recency[Checkpoint[P]] = Recency()
        self.bytes = 0

    @property
    def entries(self) -> int:
        return len(self._by_key)

    def longest(self, namespace: bytes, ids: Sequence[int]) -> Checkpoint[P] | None:
        """The one of the longest prefix of `ids`."""
        lengths = sorted(length for length in self._lengths.get(namespace, ()) if length <= len(ids))
        found = None
        for key in prefix_keys(namespace, ids, lengths):
            found = self._by_key.get(key, found)
        return found

    @contextmanager
    def pinned(self, checkpoint: Checkpoint[P]) -> Iterator[None]:
        """It is not evicted meanwhile."""
        checkpoint.pins += 1
        try:
            yield
        finally:
            checkpoint.pins -= 1

    def touch(self, checkpoint: Checkpoint[P]) -> None:
        """It was used just now."""
        self._recency.touch(checkpoint, next(self._ticks))

    def touch_exact(self, namespace: bytes, ids: Sequence[int]) -> bool:
        """Whether there is one for exactly these ids, which then was used just now."""
        found = self._by_key.get(prefix_key(namespace, ids))
        if found is not None:
            self.touch(found)
        return found is not None

    def add(self, namespace: bytes, ids: Sequence[int], payload: P) -> Checkpoint[P]:
        """Keep the state after all of `ids`, in place of one for the same ids."""
        added = Checkpoint(prefix_key(namespace, ids), namespace, len(ids), payload)
        replaced = self._by_key.get(added.key)
        if replaced is not None:
            self._remove(replaced)
        self._by_key[added.key] = added
        self._lengths.setdefault(namespace, Counter())[added.tokens] += 1
        self.bytes += payload.nbytes
        self.touch(added)
        return added

    def remove(self, namespace: bytes, ids: Sequence[int]) -> None:
        """Let all beginnings of `ids` go."""
        while (found := self.longest(namespace, ids)) is not None:
            found.is_void = True
            self._remove(found)

    def oldest(self) -> int | None:
        """The tick at which the checkpoint that would be evicted next was used."""
        found = self._evictable()
        return None if found is None else self._recency.tick_of(found)

    def evict_oldest(self) -> None:
        """Let the least recently used one go that is not pinned; at least one must be there."""
        found = self._evictable()
        assert found is not None
        self._remove(found)

    def clear(self) -> None:
        self._by_key.clear()
        self._lengths.clear()
        self._recency.clear()
        self.bytes = 0

    def _evictable(self) -> Checkpoint[P] | None:
        return self._recency.oldest(lambda checkpoint: not checkpoint.pins)

    def _remove(self, checkpoint: Checkpoint[P]) -> None:
        del self._by_key[checkpoint.key]
        self._recency.forget(checkpoint)
        self.bytes -= checkpoint.payload.nbytes
        lengths = self._lengths[checkpoint.namespace]
        lengths[checkpoint.tokens] -= 1
        if not lengths[checkpoint.tokens]:
            del lengths[checkpoint.tokens]
        if not lengths:
            del self._lengths[checkpoint.namespace]
