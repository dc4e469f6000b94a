"""What a replica tells batching of its prefix cache: what has changed, and not too often. Pure."""

from __future__ import annotations

from mlx_serving.actors.generation.engine import HeldPrefixes
from mlx_serving.actors.messages.batching import PrefixesHeld
from mlx_serving.actors.prefix_digests import pack_digests

ANNOUNCE_SECONDS = 0.2
"""Changes of this long share one message."""


class Announcer:
    """What one replica's cache holds, and what of that was told."""

    def __init__(self, replica: str) -> None:
        self._replica = replica
        self._told: frozenset[int] | None = None
        self._version = -1
        self._due = 0.0

    def news(self, held: HeldPrefixes | None, now: float) -> PrefixesHeld | None:
        """The message to send now; None when nothing is new or it is not yet time."""
        if held is None or now < self._due or (self._told is not None and held.version == self._version):
            return None
        digests = frozenset(held.digests)
        before, self._told, self._version = self._told, digests, held.version
        self._due = now + ANNOUNCE_SECONDS
        if before is None:
            return PrefixesHeld(self._replica, held.namespace, pack_digests(digests), is_whole=True)
        if before == digests:
            return None
        added, dropped = pack_digests(digests - before), pack_digests(before - digests)
        return PrefixesHeld(self._replica, held.namespace, added, dropped)

    def forget(self) -> None:
        """Nobody knows what was told: the next message tells everything, at once."""
        self._told, self._due = None, 0.0
