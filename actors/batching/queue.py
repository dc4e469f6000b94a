"""The waiting line of one model: priority classes with ageing, fair shares inside a class.

Rules:
1. A class is served before every lower one; a class's first sequence rises by one class for every `ageing` seconds it
   has waited, so nothing starves. Between equals the one that has waited longest goes first.
2. Inside a class, tenants share by start-time fair queueing (Goyal, Vin, Cheng 1996): a sequence's tag is the later of
   the line's virtual time and its tenant's last tag plus cost; the least tag goes first. Cost is the number of tokens
   that the sequence may take. A tenant with many requests therefore delays its own, not another's.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import attrs

from mlx_serving.actors.messages.batching import SequenceQueued
from mlx_serving.actors.messages.values import PRIORITIES

SLACK = 64
"""Left-overs that are not worth a clean-up."""


@attrs.define(order=True)
class _Entry:
    tag: float
    queued_at: float
    sequence_id: int


class WaitingLine:
    """Sequences of one model that wait for a place."""

    def __init__(self, ageing: float) -> None:
        self.ageing = ageing
        self._classes: dict[int, list[_Entry]] = {rank: [] for rank in range(len(PRIORITIES))}
        self._waiting: dict[int, SequenceQueued] = {}
        self._virtual = 0.0
        self._tenant_tags: dict[tuple[int, str], float] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[SequenceQueued]:
        return iter(self._waiting.values())

    def add(self, sequence: SequenceQueued, cost: float) -> None:
        rank = PRIORITIES.index(sequence.priority)
        tenant = (rank, sequence.tenant)
        tag = max(self._virtual, self._tenant_tags.get(tenant, 0.0))
        self._tenant_tags[tenant] = tag + cost
        self._waiting[sequence.sequence_id] = sequence
        heapq.heappush(self._classes[rank], _Entry(tag, sequence.queued_at, sequence.sequence_id))

    def remove(self, sequence_id: int) -> bool:
        """True when the sequence was waiting here."""
        found = self._waiting.pop(sequence_id, None) is not None
        self._tidy()
        return found

    def first(self, now: float) -> SequenceQueued | None:
        """The sequence to be served next; None when nobody waits."""
        best = self._best(now)
        return None if best is None else self._waiting[best[1].sequence_id]

    def pop(self, now: float) -> SequenceQueued | None:
        """Take out what `first` names."""
        best = self._best(now)
        if best is None:
            return None
        rank, entry = best
        heapq.heappop(self._classes[rank])
        self._virtual = max(self._virtual, entry.tag)
        sequence = self._waiting[entry.sequence_id]
        self.remove(entry.sequence_id)
        return sequence

    def _best(self, now: float) -> tuple[int, _Entry] | None:
        heads = [(rank, head) for rank in self._classes if (head := self._head(rank)) is not None]
        return max(heads, key=lambda each: self._urgency(each[0], each[1], now), default=None)

    def _urgency(self, rank: int, entry: _Entry, now: float) -> tuple[int, float]:
        aged = rank + int(max(0.0, now - entry.queued_at) / self.ageing)
        return min(aged, len(PRIORITIES) - 1), -entry.queued_at

    def _head(self, rank: int) -> _Entry | None:
        entries = self._classes[rank]
        while entries and entries[0].sequence_id not in self._waiting:
            heapq.heappop(entries)
        return entries[0] if entries else None

    def _tidy(self) -> None:
        """Keep what is left of removed sequences and idle tenants in proportion to those who wait."""
        bound = 2 * len(self._waiting) + SLACK
        for rank, entries in self._classes.items():
            if len(entries) > bound:
                self._classes[rank] = [entry for entry in entries if entry.sequence_id in self._waiting]
                heapq.heapify(self._classes[rank])
        if not self._waiting:
            self._tenant_tags.clear()
            self._virtual = 0.0
        elif len(self._tenant_tags) > bound:
            present = {(PRIORITIES.index(each.priority), each.tenant) for each in self._waiting.values()}
            self._tenant_tags = {key: tag for key, tag in self._tenant_tags.items() if key in present}
