"""When and where work runs: state and a clock reading in, decisions out.

Work is released to a replica only against the slots and cache bytes that it granted. When a line's first sequence
fits nowhere, the whole line of that model waits: a small request never overtakes a large one for ever.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from mlx_serving.actors.batching.queue import WaitingLine
from mlx_serving.actors.batching.replicas import ReplicaLoad
from mlx_serving.actors.messages.admission import QueueObserved
from mlx_serving.actors.messages.batching import SequenceQueued


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

    def __init__(self, ageing: float) -> None:
        self._ageing = ageing
        self._lines: dict[str, WaitingLine] = {}
        self._replicas: dict[str, ReplicaLoad] = {}
        self._line_of: dict[int, str] = {}
        self._replica_of: dict[int, str] = {}

    def set_ageing(self, seconds: float) -> None:
        self._ageing = seconds
        for line in self._lines.values():
            line.ageing = seconds

    def replica_up(self, name: str, model: str, slots: int, kv_bytes: int) -> bool:
        """False when the replica is known already and goes on with what it holds."""
        if name in self._replicas:
            return False
        self._replicas[name] = ReplicaLoad(name, model, slots, kv_bytes)
        return True

    def replica_down(self, name: str) -> tuple[int, ...]:
        """The sequences that were on it."""
        replica = self._replicas.pop(name, None)
        lost = tuple(replica.held) if replica else ()
        for sequence_id in lost:
            self._replica_of.pop(sequence_id, None)
        return lost

    def enqueue(self, sequence: SequenceQueued) -> None:
        line = self._lines.setdefault(sequence.model, WaitingLine(self._ageing))
        line.add(sequence, cost(sequence))
        self._line_of[sequence.sequence_id] = sequence.model

    def abort(self, sequence_id: int) -> str | None:
        """Forget a sequence; the replica that runs it, if one does."""
        model = self._line_of.pop(sequence_id, None)
        if model is not None:
            self._lines[model].remove(sequence_id)
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
        return [each for model in self._lines for each in self._fill(model, now)]

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

    def _fill(self, model: str, now: float) -> list[Assignment]:
        line, started = self._lines[model], []
        while (sequence := line.first(now)) is not None:
            replica = self._place(sequence)
            if replica is None:
                break
            line.pop(now)
            self._line_of.pop(sequence.sequence_id, None)
            self._replica_of[sequence.sequence_id] = replica.name
            replica.hold(sequence.sequence_id, sequence.kv_bytes)
            started.append(Assignment(sequence, replica.name))
        return started

    def _place(self, sequence: SequenceQueued) -> ReplicaLoad | None:
        fitting = [
            load for load in self._replicas.values() if load.model == sequence.model and load.fits(sequence.kv_bytes)
        ]
        return max(fitting, key=lambda load: load.free_slots, default=None)

    def _running_on(self, sequence_id: int) -> ReplicaLoad | None:
        return self._replicas.get(self._replica_of.get(sequence_id, ""))
