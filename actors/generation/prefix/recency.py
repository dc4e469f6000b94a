"""Which of many things was used least recently, where some may not go and the order is given by ticks. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterator
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)
_SLACK = 64


class Recency(Generic[T]):
    """Items with the tick of their last use. A use costs O(log n); outdated ones stay in the heap for a while."""

    def __init__(self) -> None:
        self._ticks: dict[T, int] = {}
        self._heap: list[tuple[int, int, T]] = []
        self._pushes = count()

    def __len__(self) -> int:
        return len(self._ticks)

    def __iter__(self) -> Iterator[T]:
        return iter(self._ticks)

    def tick_of(self, item: T) -> int:
        return self._ticks[item]

    def touch(self, item: T, tick: int) -> None:
        """The item was used at `tick`."""
        self._ticks[item] = tick
        heapq.heappush(self._heap, (tick, next(self._pushes), item))
        if len(self._heap) > _SLACK + 4 * len(self._ticks):
            self._heap = [(used, next(self._pushes), each) for each, used in self._ticks.items()]
            heapq.heapify(self._heap)

    def forget(self, item: T) -> None:
        """It is gone. Nothing here holds on to one that was the oldest."""
        del self._ticks[item]
        self._skip_outdated()

    def clear(self) -> None:
        self._ticks.clear()
        self._heap.clear()

    def oldest(self, may_go: Callable[[T], bool]) -> T | None:
        """The least recently used item of those that may go."""
        kept = []
        found: T | None = None
        self._skip_outdated()
        while self._heap and found is None:
            if may_go(self._heap[0][2]):
                found = self._heap[0][2]
            else:
                kept.append(heapq.heappop(self._heap))
                self._skip_outdated()
        for entry in kept:
            heapq.heappush(self._heap, entry)
        return found

    def _skip_outdated(self) -> None:
        while self._heap and self._ticks.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
