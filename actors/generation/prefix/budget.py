"""One bound on the bytes of several stores that share an order of use. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Store(Protocol):
    """What can give its least recently used item up."""

    bytes: int

    def oldest(self) -> int | None: ...

    def evict_oldest(self) -> None: ...


def evict(stores: Sequence[Store], limit: int) -> int:
    """Evict what was used least recently of all stores until they take `limit` bytes together.

    Returns how many items went. Pinned ones stay, and may leave the stores above the limit.
    """
    count = 0
    while sum(store.bytes for store in stores) > limit:
        ticks = [(tick, place) for place, store in enumerate(stores) if (tick := store.oldest()) is not None]
        if not ticks:
            break
        stores[min(ticks)[1]].evict_oldest()
        count += 1
    return count
