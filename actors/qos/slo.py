"""Judging a snapshot against the configured objectives. Pure.

An objective without observations is met: silence is no violation. The error rate needs MIN_REQUESTS ended
requests, or a single failure on a quiet day would be a violation.
"""

from __future__ import annotations

from typing import Literal

import attrs

from mlx_serving.actors.messages.qos import Quantiles, TelemetrySnapshot
from mlx_serving.config.schema import Slo

Objective = Literal["first_token", "inter_token", "queue", "error_rate"]

MIN_REQUESTS = 10


@attrs.frozen
class Verdict:
    """What was measured of one objective, and its limit; seconds, or a share for the error rate."""

    objective: Objective
    measured: float
    limit: float

    @property
    def is_violated(self) -> bool:
        return self.limit > 0 and self.measured > self.limit


def judge(snapshot: TelemetrySnapshot, slo: Slo) -> tuple[Verdict, ...]:
    """One verdict for every objective; a limit of 0 is never violated."""
    # Requests that still wait are in no quantile yet: the oldest of them speaks for the queue as well.
    queue = max(_p95(snapshot.queue_time), snapshot.oldest_wait)
    error_rate = snapshot.error_rate if snapshot.requests >= MIN_REQUESTS else 0.0
    return (
        Verdict("first_token", _p95(snapshot.first_token), slo.first_token_p95),
        Verdict("inter_token", _p95(snapshot.inter_token), slo.inter_token_p95),
        Verdict("queue", queue, slo.queue_p95),
        Verdict("error_rate", error_rate, slo.error_rate),
    )


def _p95(measure: Quantiles) -> float:
    return measure.p95 if measure.count else 0.0
