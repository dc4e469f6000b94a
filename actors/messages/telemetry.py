"""What telemetry is told: small facts, sent without ever blocking, lost when nobody keeps up."""

from __future__ import annotations

import attrs

from mlx_serving.actors.messages.admission import MetricsRequested, QueueObserved, SystemObserved
from mlx_serving.actors.messages.values import CacheStats

__all__ = [
    "MemoryShared",
    "MetricsRequested",
    "ModelArrived",
    "ModelLeft",
    "QueueObserved",
    "RequestEnded",
    "RequestReceived",
    "StepsCompleted",
    "SystemObserved",
]


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
class ModelArrived:
    """A model serves; `seconds` since it was wanted."""

    model: str
    seconds: float


@attrs.frozen
class ModelLeft:
    """A model was unloaded. `reason`: memory (another one needed the room), idle, request, lost."""

    model: str
    reason: str


@attrs.frozen
class MemoryShared:
    """Bytes that each loaded model is counted with, and what all may take."""

    models: dict[str, int]
    limit: int


@attrs.frozen
class Counted:
    """A measured value, to two significant digits, and how often it occurred."""

    value: float
    times: int


@attrs.frozen
class StepsCompleted:
    """A replica's steps since its last report.

    `seconds`: of each step. `rows`: decoded together, of the steps that decoded. `gaps`: seconds between two tokens
    of one row. `tokens` made, `prefill_tokens` processed, `active_bytes` held by MLX and `cache_bytes` kept by its
    allocator at the last step. `drafted` tokens were proposed by speculation; `accepted` of them by one row in one
    step. `prefixes` is the prefix cache at the last step, counted since the replica started.
    """

    replica: str
    model: str
    seconds: tuple[Counted, ...]
    rows: tuple[Counted, ...]
    gaps: tuple[Counted, ...]
    tokens: int
    prefill_tokens: int
    active_bytes: int
    cache_bytes: int
    drafted: int = 0
    accepted: tuple[Counted, ...] = ()
    prefixes: CacheStats | None = None
