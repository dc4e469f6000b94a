"""What telemetry is told: small facts, sent without ever blocking, lost when nobody keeps up."""

from __future__ import annotations

import attrs

from mlx_serving.actors.messages.admission import MetricsRequested, QueueObserved, SystemObserved

__all__ = ["MetricsRequested", "QueueObserved", "RequestEnded", "RequestReceived", "StepCompleted", "SystemObserved"]


@attrs.frozen
class RequestReceived:
    """Admission has accepted or refused a request."""

    model: str
    priority: str
    accepted: bool


@attrs.frozen
class RequestEnded:
    """A request is over. `outcome`: a finish reason or an error code. Seconds; `fault` true when it was ours."""

    model: str
    priority: str
    outcome: str
    fault: bool
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    queue_seconds: float
    first_token_seconds: float | None
    total_seconds: float


@attrs.frozen
class StepCompleted:
    """A replica's step: rows decoded, tokens made, prompt tokens prefilled, seconds of the step, seconds since the
    previous token of the running rows (None when none ran), bytes MLX holds, bytes cached by its allocator."""

    replica: str
    model: str
    rows: int
    tokens: int
    prefill_tokens: int
    seconds: float
    token_gap: float | None
    active_bytes: int
    cache_bytes: int
