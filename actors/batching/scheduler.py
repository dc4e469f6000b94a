"""When and where work runs: state and a clock reading in, decisions out.

Work is released to a replica only against the slots and cache bytes that it granted. When a line's first sequence
fits nowhere, the whole line of that model waits: a small request never overtakes a large one for ever. What only one
replica may run has a line of its own. Of the replicas that it fits, a sequence goes where it finds the longest prefix
of its prompt, unless too many run there (`prefixes.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from mlx_serving.actors.batching.queue import WaitingLine
from mlx_serving.actors.batching.replicas import ReplicaLoad
from mlx_serving.actors.messages.admission import QueueObserved
from mlx_serving.actors.messages.batching import PrefixesHeld, SequenceQueued

Line = tuple[str, str | None]
"""A model, and the replica if only one may run what waits in the line."""


@attrs.frozen
class Assignment:
    """This sequence runs on this replica now."""

    sequence: SequenceQueued
    replica: str


def cost(sequence: SequenceQueued) -> float:
    """Tokens that a sequence may take: its prompt and its longest answer."""
    return len(sequence.prompt_ids) / 4 + (sequence.stopping.max_tokens or 0)


class Scheduler:
    """Waiting lines by model, credits by replica."""

    def __init__(self, ageing: float, load_tokens: int = 0) -> None:
        self._ageing = ageing
        self.load_tokens = load_tokens
        self._lines: dict[Line, WaitingLine] = {}
        self._replicas: dict[str, ReplicaLoad] = {}
        self._shares: dict[str, int] = {}
        self._line_of: dict[int, Line] = {}
        self._replica_of: dict[int, str] = {}

    def set_ageing(self, seconds: float) -> None:
        self._ageing = seconds
        for line in self._lines.values():
            line.ageing = seconds

    def replica_up(self, name: str, model: str, slots: int, kv_bytes: int) -> bool:
        """False when the replica is known already and goes on with what it holds."""
        if name in self._replicas:
            return False
        self._replicas[name] = ReplicaLoad(name, model, slots, self._shares.get(model, kv_bytes))
        return True

    def share(self, kv_bytes: Mapping[str, int]) -> None:
        """What each replica of a model may hold from now on; what runs already is not disturbed."""
        self._shares = dict(kv_bytes)
        for load in self._replicas.values():
            load.kv_bytes = self._shares.get(load.model, load.kv_bytes)

    def replica_down(self, name: str) -> tuple[int, ...]:
        """The sequences that were on it, or waited for it alone."""
        replica = self._replicas.pop(name, None)
        lost = tuple(replica.held) if replica else ()
        for sequence_id in lost:
            self._replica_of.pop(sequence_id, None)
        waited = tuple(sequence_id for sequence_id, line in self._line_of.items() if line[1] == name)
        for sequence_id in waited:
            self.abort(sequence_id)
        return lost + waited

    def prefixes_held(self, message: PrefixesHeld) -> None:
        replica = self._replicas.get(message.replica)
        if replica is not None:
            replica.prefixes.told(message)

    def enqueue(self, sequence: SequenceQueued) -> None:
        key = (sequence.model, sequence.replica)
        line = self._lines.setdefault(key, WaitingLine(self._ageing))
        line.add(sequence, cost(sequence))
        self._line_of[sequence.sequence_id] = key

    def abort(self, sequence_id: int) -> str | None:
        """Forget a sequence; the replica that runs it, if one does."""
        key = self._line_of.pop(sequence_id, None)
        if key is not None:
            self._lines[key].remove(sequence_id)
            return None
        return self._replica_of.get(sequence_id)

    def pause(self, sequence_id: int) -> str | None:
        """The replica to tell."""
        replica = self._running_on(sequence_id)
        if replica is not None:
            replica.paused.add(sequence_id)
        return None if replica is None else replica.name

    def resume(self, sequence_id: int) -> str | None:
        """The replica to tell. A resumed sequence may take one row more than was granted: it never waits again."""
        replica = self._running_on(sequence_id)
        if replica is not None:
            replica.paused.discard(sequence_id)
        return None if replica is None else replica.name

    def ended(self, replica: str, sequence_ids: Iterable[int]) -> None:
        load = self._replicas.get(replica)
        for sequence_id in sequence_ids:
            if load is not None:
                load.release(sequence_id)
            self._replica_of.pop(sequence_id, None)

    def decide(self, now: float) -> list[Assignment]:
        """Everything that can start now, most urgent first."""
        started = [each for line in self._lines.values() for each in self._fill(line, now)]
        self._lines = {key: line for key, line in self._lines.items() if len(line) or key[1] is None}
        return started

    def observe(self, now: float) -> QueueObserved:
        waiting = [sequence.queued_at for line in self._lines.values() for sequence in line]
        loads = self._replicas.values()
        paused = sum(len(load.paused) for load in loads)
        return QueueObserved(
            waiting=len(waiting),
            running=sum(len(load.held) for load in loads) - paused,
            paused=paused,
            oldest_wait=max(0.0, now - min(waiting)) if waiting else 0.0,
            reserved_kv_bytes=sum(load.reserved for load in loads),
        )

    def _fill(self, line: WaitingLine, now: float) -> list[Assignment]:
        started = []
        while (sequence := line.first(now)) is not None:
            replica = self._place(sequence)
            if replica is None:
                break
            line.pop(now)
            self._line_of.pop(sequence.sequence_id, None)
            self._replica_of[sequence.sequence_id] = replica.name
            started.append(Assignment(sequence, replica.name))
        return started

    def _place(self, sequence: SequenceQueued) -> ReplicaLoad | None:
        """Give the sequence to the replica that suits it best; None when it fits none now."""
        serving = [load for load in self._replicas.values() if load.model == sequence.model]
        fitting = [
            load
            for load in serving
            if load.fits(sequence.kv_bytes) and (sequence.replica is None or sequence.replica == load.name)
        ]
        digests = self._digests(sequence, serving if fitting else [])

        def worth(load: ReplicaLoad) -> tuple[int, int, int]:
            cached = load.prefixes.cached_tokens(digests[load.name]) if digests else 0
            return cached - self.load_tokens * load.running, cached, load.free_slots

        best = max(fitting, key=worth, default=None)
        if best is not None:
            best.hold(sequence.sequence_id, sequence.kv_bytes, digests.get(best.name, []))
        return best

    def _digests(self, sequence: SequenceQueued, serving: list[ReplicaLoad]) -> dict[str, list[int]]:
        """Of the prompt, by replica; none where there is no choice. Replicas with one namespace share the work."""
        if len(serving) < 2:
            return {}
        by_base: dict[bytes | None, list[int]] = {}
        for load in serving:
            if load.prefixes.base not in by_base:
                by_base[load.prefixes.base] = load.prefixes.digests(sequence)
        return {load.name: by_base[load.prefixes.base] for load in serving}

    def _running_on(self, sequence_id: int) -> ReplicaLoad | None:
        return self._replicas.get(self._replica_of.get(sequence_id, ""))
