"""Whether an actor is alive, and when to start it again. Pure.

Dead is: silent for too long; or work pending and no step completed for too long, whatever its heartbeats say.
"""

from __future__ import annotations

import attrs

from mlx_serving.config.schema import Supervision


@attrs.define
class Pulse:
    """What is known of one running actor; times are monotonic seconds."""

    last_beat: float
    steps: int = 0
    pending: int = 0
    progress_at: float = 0.0

    def beat(self, steps: int, pending: int, now: float) -> None:
        """A heartbeat has arrived."""
        if steps != self.steps or not pending or not self.pending:
            self.progress_at = now
        self.last_beat, self.steps, self.pending = now, steps, pending


def verdict(pulse: Pulse, works_long: bool, now: float, limits: Supervision) -> str | None:
    """Why the actor must be taken for dead; None while it is well.

    `works_long`: one step may take long and no heartbeat comes during it, so silence counts only from
    `progress_timeout` on.
    """
    silent = now - pulse.last_beat
    allowed = limits.progress_timeout if works_long else limits.heartbeat_timeout
    if silent > allowed:
        return f"no heartbeat for {silent:.0f} s"
    stuck = now - pulse.progress_at
    if pulse.pending and stuck > limits.progress_timeout:
        return f"work pending and no step completed for {stuck:.0f} s"
    return None


def backoff(failures: int, limits: Supervision) -> float | None:
    """Seconds to wait before start number `failures` + 1; None when the actor is given up."""
    if failures > limits.max_restarts:
        return None
    wait: float = limits.restart_backoff * 2 ** max(0, failures - 1)
    return min(wait, limits.restart_backoff_max)
