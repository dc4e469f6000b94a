"""What QoS does about a violation. Pure: verdicts and a clock reading in, decisions and audit entries out.

The rules:
1. An objective counts as violated after `violations_to_act` bad snapshots in a row, and as recovered after
   `recoveries_to_stop` good ones in a row. Both are audited.
2. There is one lever: refusing new requests of the lowest priority classes. Only the queue moves it.
3. While the queue is in violation, each full round of `violations_to_act` bad snapshots moves the lever one
   step further: first `low`, then `low` and `normal`, never `high`; never within `cooldown_seconds` of the
   last move.
4. One round of snapshots after each step the measure is compared with what it was, and the effect audited.
5. When the queue has recovered, or nothing is heard from telemetry any more, nothing is shed.
"""

from __future__ import annotations

from typing import Literal

import attrs

from mlx_serving.actors.messages.values import PRIORITIES, Priority
from mlx_serving.actors.qos.slo import Objective, Verdict
from mlx_serving.config.schema import Qos

STEPS: tuple[tuple[Priority, ...], ...] = ((), PRIORITIES[:1], PRIORITIES[:2])
"""The positions of the lever: the classes that are shed."""

What = Literal["violated", "recovered", "shed", "stopped", "effect"]


@attrs.frozen
class AuditEntry:
    """One thing that QoS judged or did. `detail` says the rest in words."""

    what: What
    objective: Objective
    measured: float
    limit: float
    shed: tuple[Priority, ...]
    detail: str


@attrs.define
class _Streak:
    """Snapshots in a row of one kind, and what the objective counts as."""

    bad: int = 0
    good: int = 0
    is_violated: bool = False

    def judge(self, verdict: Verdict, qos: Qos) -> Literal["violated", "recovered"] | None:
        self.bad, self.good = (self.bad + 1, 0) if verdict.is_violated else (0, self.good + 1)
        if not self.is_violated and self.bad >= qos.violations_to_act:
            self.is_violated = True
            return "violated"
        if self.is_violated and self.good >= qos.recoveries_to_stop:
            self.is_violated = False
            return "recovered"
        return None


@attrs.define
class _Step:
    """The last step of the lever, until its effect has been looked at."""

    measured: float
    snapshots: int = 0


class Policy:
    """Remembers streaks, the lever, and what the last step was meant to improve."""

    def __init__(self) -> None:
        self._streaks: dict[Objective, _Streak] = {}
        self._step: _Step | None = None
        self._position = 0
        self._moved_at: float | None = None
        self._bad_since_move = 0

    @property
    def shed(self) -> tuple[Priority, ...]:
        """The classes to refuse now."""
        return STEPS[self._position]

    def decide(self, verdicts: tuple[Verdict, ...], qos: Qos, now: float) -> list[AuditEntry]:
        """Take in the verdicts on one snapshot; `shed` holds the decision."""
        entries = []
        for verdict in verdicts:
            turn = self._streaks.setdefault(verdict.objective, _Streak()).judge(verdict, qos)
            if turn is not None:
                entries.append(self._entry(turn, verdict, ""))
            if verdict.objective == "queue":
                entries += self._pull(verdict, qos, now)
        return entries

    def fall_silent(self, now: float) -> list[AuditEntry]:
        """Telemetry says nothing any more: forget the streaks and shed nothing blindly."""
        self._streaks.clear()
        return self._stop(Verdict("queue", 0.0, 0.0), now, "no snapshots from telemetry")

    def _pull(self, verdict: Verdict, qos: Qos, now: float) -> list[AuditEntry]:
        """Move the lever for the queue objective."""
        self._bad_since_move = self._bad_since_move + 1 if verdict.is_violated else 0
        entries = self._effect(verdict, qos)
        if not self._streaks["queue"].is_violated:
            return entries + self._stop(verdict, now, "recovered")
        if self._bad_since_move >= qos.violations_to_act and self._may_move(qos, now):
            self._move(self._position + 1, now)
            self._step = _Step(verdict.measured)
            entries.append(self._entry("shed", verdict, f"refusing {', '.join(self.shed)}"))
        return entries

    def _effect(self, verdict: Verdict, qos: Qos) -> list[AuditEntry]:
        step = self._step
        if step is None:
            return []
        step.snapshots += 1
        if step.snapshots < qos.violations_to_act:
            return []
        self._step = None
        outcome = "improved" if verdict.measured < step.measured else "not improved"
        return [self._entry("effect", verdict, f"{outcome}: was {step.measured:.3f}")]

    def _stop(self, verdict: Verdict, now: float, detail: str) -> list[AuditEntry]:
        if self._position == 0:
            return []
        self._move(0, now)
        self._step = None
        return [self._entry("stopped", verdict, detail)]

    def _may_move(self, qos: Qos, now: float) -> bool:
        if self._position + 1 >= len(STEPS):
            return False
        return self._moved_at is None or now - self._moved_at >= qos.cooldown_seconds

    def _move(self, position: int, now: float) -> None:
        self._position, self._moved_at, self._bad_since_move = position, now, 0

    def _entry(self, what: What, verdict: Verdict, detail: str) -> AuditEntry:
        return AuditEntry(what, verdict.objective, verdict.measured, verdict.limit, self.shed, detail)
