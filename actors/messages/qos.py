"""What QoS is told."""

from __future__ import annotations

import attrs


@attrs.frozen
class Quantiles:
    """Of one measure over the window, in seconds; `count` 0 means nothing was seen."""

    count: int
    p50: float
    p95: float
    p99: float


@attrs.frozen
class TelemetrySnapshot:
    """The last `window` seconds. `error_rate` counts our faults over all requests that ended."""

    window: float
    taken_at: float
    first_token: Quantiles
    inter_token: Quantiles
    queue_time: Quantiles
    oldest_wait: float
    requests: int
    error_rate: float
