"""Events in; counters, distributions and sliding-window snapshots out. Pure: the caller brings the clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from mlx_serving.actors.messages.admission import ActorState, QueueObserved, SystemObserved
from mlx_serving.actors.messages.qos import Quantiles, TelemetrySnapshot
from mlx_serving.actors.messages.telemetry import (
    MemoryShared,
    ModelArrived,
    ModelLeft,
    RequestEnded,
    RequestReceived,
    StepsCompleted,
)
from mlx_serving.actors.messages.values import CacheStats
from mlx_serving.actors.telemetry import metrics
from mlx_serving.actors.telemetry.metrics import METRICS, Metric
from mlx_serving.actors.telemetry.series import Series
from mlx_serving.actors.telemetry.window import SlidingCounts, SlidingQuantiles

_FRACTIONS = (0.5, 0.95, 0.99)
_OK, _FAULT = 0, 1
_REPLICAS = 256
"""Of which the last counts are remembered; one gets a fresh name after every start."""


class Aggregate:
    """Everything telemetry knows, in bounded memory: series, bins and slices of the window have limits."""

    def __init__(self, window: float) -> None:
        """`window` in seconds."""
        self.series: dict[Metric, Series] = {metric: Series(metric) for metric in METRICS}
        self._window = window
        self._first_token = SlidingQuantiles(window)
        self._inter_token = SlidingQuantiles(window)
        self._queue = SlidingQuantiles(window)
        self._ended = SlidingCounts(window)
        self._oldest_wait = 0.0
        self._prefixes: dict[str, CacheStats] = {}
        self._takers: dict[type, Callable[[Any, float], None]] = {
            RequestReceived: self._received,
            RequestEnded: self._request_ended,
            StepsCompleted: self._steps,
            QueueObserved: self._queue_observed,
            SystemObserved: self._system_observed,
            ModelArrived: self._model_arrived,
            ModelLeft: self._model_left,
            MemoryShared: self._memory_shared,
        }

    def observe(self, event: object, now: float) -> bool:
        """Take in one event; False when it is none."""
        taker = self._takers.get(type(event))
        if taker is None:
            return False
        taker(event, now)
        return True

    def snapshot(self, now: float) -> TelemetrySnapshot:
        """The window that ends now."""
        ended: Counter[int] = self._ended.totals(now)
        requests = ended.total()
        return TelemetrySnapshot(
            window=self._window,
            taken_at=now,
            first_token=_quantiles(self._first_token, now),
            inter_token=_quantiles(self._inter_token, now),
            queue_time=_quantiles(self._queue, now),
            oldest_wait=self._oldest_wait,
            requests=requests,
            error_rate=ended[_FAULT] / requests if requests else 0.0,
        )

    def _received(self, event: RequestReceived, now: float) -> None:
        # A refused request's model is whatever the caller wrote: no label.
        if event.accepted:
            self.series[metrics.ACCEPTED].add(1, event.model, event.priority)
        else:
            self.series[metrics.REFUSED].add(1, event.priority)

    def _request_ended(self, event: RequestEnded, now: float) -> None:
        series, model = self.series, event.model
        series[metrics.REQUESTS].add(1, model, event.priority, event.outcome)
        series[metrics.PROMPT_TOKENS].add(event.prompt_tokens, model)
        series[metrics.COMPLETION_TOKENS].add(event.completion_tokens, model)
        series[metrics.CACHED_TOKENS].add(event.cached_tokens, model)
        series[metrics.DURATION].observe(event.total_seconds, model)
        self._ended.count(_FAULT if event.fault else _OK, now)
        if event.first_token_seconds is not None:
            series[metrics.FIRST_TOKEN].observe(event.first_token_seconds, model)
            self._first_token.observe(event.first_token_seconds, now)
        # A request that failed before it could queue says nothing about the queue.
        if event.first_token_seconds is not None or event.queue_seconds > 0:
            series[metrics.QUEUE].observe(event.queue_seconds, model, event.priority)
            self._queue.observe(event.queue_seconds, now)

    def _steps(self, event: StepsCompleted, now: float) -> None:
        series, model = self.series, event.model
        series[metrics.DECODED].add(event.tokens, model)
        series[metrics.PREFILLED].add(event.prefill_tokens, model)
        series[metrics.DRAFTED].add(event.drafted, model)
        series[metrics.ACCEPTED_DRAFTS].add(sum(each.value * each.times for each in event.accepted), model)
        series[metrics.ACTIVE_MEMORY].set(event.active_bytes, event.replica, model)
        series[metrics.CACHE_MEMORY].set(event.cache_bytes, event.replica, model)
        if event.prefixes is not None:
            self._prefixes_held(event.replica, model, event.prefixes)
        for metric, counted in (
            (metrics.STEPS, event.seconds),
            (metrics.ROWS, event.rows),
            (metrics.INTER_TOKEN, event.gaps),
            (metrics.ACCEPTANCE, event.accepted),
        ):
            for each in counted:
                series[metric].observe(each.value, model, weight=each.times)
        for gap in event.gaps:
            self._inter_token.observe(gap.value, now, gap.times)

    def _prefixes_held(self, replica: str, model: str, stats: CacheStats) -> None:
        """Counts come as totals, so that nothing is missing after a report was lost."""
        series, before = self.series, self._prefixes.pop(replica, CacheStats(enabled=True))
        self._prefixes[replica] = stats
        if len(self._prefixes) > _REPLICAS:
            del self._prefixes[next(iter(self._prefixes))]
        from_disk = stats.disk_hit_tokens - before.disk_hit_tokens
        series[metrics.PREFIX_LOOKUPS].add(stats.lookups - before.lookups, model)
        series[metrics.PREFIX_HITS].add(stats.hits - before.hits, model)
        series[metrics.PREFIX_TOKENS].add(stats.hit_tokens - before.hit_tokens - from_disk, model, "memory")
        series[metrics.PREFIX_TOKENS].add(from_disk, model, "disk")
        series[metrics.PREFIX_EVICTIONS].add(stats.evicted - before.evicted, model)
        series[metrics.PREFIX_DROPPED].add(stats.dropped - before.dropped, model)
        series[metrics.PREFIX_BYTES].set(stats.bytes, replica, model, "memory")
        series[metrics.PREFIX_BYTES].set(stats.disk_bytes, replica, model, "disk")

    def _model_arrived(self, event: ModelArrived, now: float) -> None:
        self.series[metrics.LOADS].add(1, event.model)
        self.series[metrics.LOAD_TIME].observe(event.seconds, event.model)

    def _model_left(self, event: ModelLeft, now: float) -> None:
        self.series[metrics.EVICTIONS].add(1, event.model, event.reason)

    def _memory_shared(self, event: MemoryShared, now: float) -> None:
        resident = self.series[metrics.RESIDENT]
        resident.clear()
        for model, size in event.models.items():
            resident.set(size, model)
        self.series[metrics.MODEL_MEMORY].set(event.limit)

    def _queue_observed(self, event: QueueObserved, now: float) -> None:
        self._oldest_wait = event.oldest_wait
        self.series[metrics.WAITING].set(event.waiting)
        self.series[metrics.RUNNING].set(event.running)
        self.series[metrics.PAUSED].set(event.paused)
        self.series[metrics.OLDEST_WAIT].set(event.oldest_wait)
        self.series[metrics.RESERVED_KV].set(event.reserved_kv_bytes)

    def _system_observed(self, event: SystemObserved, now: float) -> None:
        up, restarts = self.series[metrics.UP], self.series[metrics.RESTARTS]
        up.clear()
        restarts.clear()
        for state in event.actors:
            labels = _role_and_model(state)
            up.add(1 if state.state == "ready" else 0, *labels)
            restarts.add(state.restarts, *labels)
        self.series[metrics.DRAINING].set(1 if event.draining else 0)
        there = {_name(state) for state in event.actors}
        for metric in (metrics.ACTIVE_MEMORY, metrics.CACHE_MEMORY, metrics.PREFIX_BYTES):
            self.series[metric].drop(lambda labels: labels[0] not in there)


def _quantiles(measure: SlidingQuantiles, now: float) -> Quantiles:
    count, (p50, p95, p99) = measure.at(_FRACTIONS, now)
    return Quantiles(count, p50, p95, p99)


def _name(state: ActorState) -> str:
    """The supervisor writes a replica as `NAME (MODEL)`."""
    return state.name.partition(" (")[0]


def _role_and_model(state: ActorState) -> tuple[str, str]:
    """A replica has a fresh name after every start: it counts by its model."""
    name, _, model = state.name.partition(" (")
    return ("replica", model.removesuffix(")")) if model else (name, "")
