"""What each replica has granted and what is held against it."""

from __future__ import annotations

import attrs

from mlx_serving.actors.batching.prefixes import Prefixes


@attrs.define
class ReplicaLoad:
    """One replica's credits. A sequence holds a slot until it ends or is paused, and its cache bytes until it ends."""

    name: str
    model: str
    slots: int
    kv_bytes: int
    held: dict[int, int] = attrs.field(factory=dict)
    paused: set[int] = attrs.field(factory=set)
    reserved: int = 0
    prefixes: Prefixes = attrs.field(factory=Prefixes)
    digests: dict[int, list[int]] = attrs.field(factory=dict)
    """Of the prompts of held sequences, as far as they were looked at."""

    @property
    def running(self) -> int:
        return len(self.held) - len(self.paused)

    @property
    def free_slots(self) -> int:
        return self.slots - self.running

    def fits(self, kv_bytes: int) -> bool:
        """Whether one more sequence has a row and room. A sequence larger than the budget fits an empty replica."""
        return self.free_slots > 0 and (not self.held or self.reserved + kv_bytes <= self.kv_bytes)

    def hold(self, sequence_id: int, kv_bytes: int, digests: list[int]) -> None:
        self.held[sequence_id] = kv_bytes
        self.reserved += kv_bytes
        if digests:
            self.digests[sequence_id] = digests
            self.prefixes.expect(digests)

    def release(self, sequence_id: int) -> bool:
        """True when the sequence was held here."""
        kv_bytes = self.held.pop(sequence_id, None)
        if kv_bytes is None:
            return False
        self.paused.discard(sequence_id)
        self.reserved -= kv_bytes
        self.prefixes.settle(self.digests.pop(sequence_id, []))
        return True
