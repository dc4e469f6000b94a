"""Known traffic in, the same numbers out."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.actors.messages.admission import ActorState, QueueObserved, SystemObserved
from mlx_serving.actors.messages.telemetry import Counted, RequestEnded, RequestReceived, StepsCompleted
from mlx_serving.actors.messages.values import PRIORITIES, CacheStats
from mlx_serving.actors.telemetry import metrics
from mlx_serving.actors.telemetry.aggregate import Aggregate
from mlx_serving.actors.telemetry.metrics import Metric
from mlx_serving.actors.telemetry.series import MAX_LABEL, MAX_SERIES, OTHER


def ended(**changes: object) -> RequestEnded:
    fields: dict[str, object] = {
        "model": "m",
        "priority": "normal",
        "outcome": "stop",
        "fault": False,
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "cached_tokens": 2,
        "queue_seconds": 0.1,
        "first_token_seconds": 0.2,
        "total_seconds": 0.5,
    }
    return RequestEnded(**{**fields, **changes})  # type: ignore[arg-type]


def steps(**changes: object) -> StepsCompleted:
    fields: dict[str, object] = {
        "replica": "r1",
        "model": "m",
        "seconds": (Counted(0.02, 1),),
        "rows": (Counted(4, 1),),
        "gaps": (Counted(0.025, 4),),
        "tokens": 4,
        "prefill_tokens": 0,
        "active_bytes": 1000,
        "cache_bytes": 100,
    }
    return StepsCompleted(**{**fields, **changes})  # type: ignore[arg-type]


def actor(name: str, state: str = "ready", restarts: int = 0) -> ActorState:
    return ActorState(name, state, "thread", 1, restarts, 1.0)


def numbers(aggregate: Aggregate, metric: Metric) -> dict[tuple[str, ...], float]:
    return dict(aggregate.series[metric].numbers())


traffic = st.lists(
    st.builds(
        ended,
        model=st.sampled_from(["a", "b"]),
        priority=st.sampled_from(PRIORITIES),
        outcome=st.sampled_from(["stop", "length", "cancelled", "replica_lost"]),
        fault=st.booleans(),
        prompt_tokens=st.integers(0, 10_000),
        completion_tokens=st.integers(0, 1000),
        cached_tokens=st.integers(0, 1000),
        queue_seconds=st.floats(0, 700),
        first_token_seconds=st.none() | st.floats(0, 700),
        total_seconds=st.floats(0, 700),
    ),
    max_size=60,
)


@given(requests=traffic)
def test_counters_equal_the_traffic(requests: list[RequestEnded]) -> None:
    aggregate = Aggregate(60.0)
    for request in requests:
        assert aggregate.observe(request, 1.0)
    expected = Counter((each.model, each.priority, each.outcome) for each in requests)
    assert numbers(aggregate, metrics.REQUESTS) == expected
    for model in {each.model for each in requests}:
        of_model = [each for each in requests if each.model == model]
        assert numbers(aggregate, metrics.PROMPT_TOKENS)[model,] == sum(each.prompt_tokens for each in of_model)
        completion = numbers(aggregate, metrics.COMPLETION_TOKENS)[model,]
        assert completion == sum(each.completion_tokens for each in of_model)
        assert numbers(aggregate, metrics.CACHED_TOKENS)[model,] == sum(each.cached_tokens for each in of_model)
        duration = dict(aggregate.series[metrics.DURATION].distributions())[model,]
        assert sum(duration.counts) == len(of_model)
        assert duration.total == pytest.approx(sum(each.total_seconds for each in of_model))
    snapshot = aggregate.snapshot(1.0)
    assert snapshot.requests == len(requests)
    assert snapshot.error_rate * len(requests) == pytest.approx(sum(each.fault for each in requests))
    assert snapshot.first_token.count == sum(each.first_token_seconds is not None for each in requests)


def test_a_histogram_counts_values_in_the_bucket_they_fit() -> None:
    aggregate = Aggregate(60.0)
    bounds = metrics.FIRST_TOKEN.buckets
    for seconds in (0.0, bounds[0], bounds[0] * 1.01, bounds[-1] + 1):
        aggregate.observe(ended(first_token_seconds=seconds), 1.0)
    counts = dict(aggregate.series[metrics.FIRST_TOKEN].distributions())["m",].counts
    assert (counts[0], counts[1], counts[-1]) == (2, 1, 1)


def test_the_inter_token_latency_counts_every_row_of_a_step() -> None:
    aggregate = Aggregate(60.0)
    rows, gaps = (Counted(9, 1), Counted(1, 1)), (Counted(0.01, 9), Counted(0.5, 1))
    aggregate.observe(steps(rows=rows, gaps=gaps, tokens=10), 1.0)
    aggregate.observe(steps(rows=(), gaps=(), tokens=0, prefill_tokens=256), 1.0)
    snapshot = aggregate.snapshot(1.0)
    assert snapshot.inter_token.count == 10
    assert snapshot.inter_token.p50 == pytest.approx(0.01, rel=0.011)
    assert snapshot.inter_token.p95 == pytest.approx(0.5, rel=0.011)
    assert numbers(aggregate, metrics.DECODED) == {("m",): 10.0}
    assert numbers(aggregate, metrics.PREFILLED) == {("m",): 256.0}
    shown = dict(aggregate.series[metrics.ROWS].distributions())["m",]
    assert (sum(shown.counts), shown.total) == (2, 10.0)


def test_a_request_that_never_queued_says_nothing_about_the_queue() -> None:
    aggregate = Aggregate(60.0)
    aggregate.observe(ended(queue_seconds=0.0, first_token_seconds=None, outcome="tokenizer_failed"), 1.0)
    assert aggregate.snapshot(1.0).queue_time.count == 0
    aggregate.observe(ended(queue_seconds=9.0, first_token_seconds=None, outcome="deadline_exceeded"), 1.0)
    assert aggregate.snapshot(1.0).queue_time.count == 1


def test_refused_requests_count_without_the_callers_model_name() -> None:
    aggregate = Aggregate(60.0)
    aggregate.observe(RequestReceived("m", "low", True), 1.0)
    aggregate.observe(RequestReceived("whatever", "low", False), 1.0)
    assert numbers(aggregate, metrics.ACCEPTED) == {("m", "low"): 1.0}
    assert numbers(aggregate, metrics.REFUSED) == {("low",): 1.0}


def test_the_queue_shows_as_gauges_and_in_the_snapshot() -> None:
    aggregate = Aggregate(60.0)
    aggregate.observe(QueueObserved(3, 2, 1, 4.5, 1 << 20), 1.0)
    aggregate.observe(QueueObserved(2, 3, 0, 1.5, 1 << 21), 2.0)
    shown = [
        numbers(aggregate, metric)[()]
        for metric in (
            metrics.WAITING,
            metrics.RUNNING,
            metrics.PAUSED,
            metrics.OLDEST_WAIT,
            metrics.RESERVED_KV,
        )
    ]
    assert shown == [2, 3, 0, 1.5, 1 << 21]
    assert aggregate.snapshot(2.0).oldest_wait == 1.5


def test_replicas_count_by_their_model_whatever_they_are_called_after_a_restart() -> None:
    aggregate = Aggregate(60.0)
    table = (actor("qos"), actor("r1 (m)"), actor("r2 (m)", "failed", restarts=2))
    aggregate.observe(SystemObserved(table), 1.0)
    assert numbers(aggregate, metrics.UP) == {("qos", ""): 1, ("replica", "m"): 1}
    aggregate.observe(SystemObserved((actor("qos"), actor("r1 (m)"), actor("r3 (m)", restarts=3)), True), 2.0)
    assert numbers(aggregate, metrics.UP) == {("qos", ""): 1, ("replica", "m"): 2}
    assert numbers(aggregate, metrics.RESTARTS) == {("qos", ""): 0, ("replica", "m"): 3}
    assert numbers(aggregate, metrics.DRAINING) == {(): 1}


def test_memory_of_a_replica_that_is_gone_is_no_longer_shown() -> None:
    aggregate = Aggregate(60.0)
    aggregate.observe(steps(replica="r1"), 1.0)
    aggregate.observe(steps(replica="r2"), 1.0)
    aggregate.observe(SystemObserved((actor("r2 (m)"),)), 2.0)
    assert numbers(aggregate, metrics.ACTIVE_MEMORY) == {("r2", "m"): 1000.0}
    assert numbers(aggregate, metrics.CACHE_MEMORY) == {("r2", "m"): 100.0}


def test_series_and_labels_stay_bounded_whatever_models_are_called() -> None:
    aggregate = Aggregate(60.0)
    for index in range(MAX_SERIES + 50):
        aggregate.observe(ended(model=f"{index}" + "x" * 500), 1.0)
    series = numbers(aggregate, metrics.PROMPT_TOKENS)
    assert len(series) == MAX_SERIES + 1
    assert series[OTHER,] == 50 * 10
    assert max(len(labels[0]) for labels in series) == MAX_LABEL


def test_what_is_no_event_is_not_taken() -> None:
    assert not Aggregate(60.0).observe("hello", 1.0)


def test_faults_leave_the_error_rate_with_the_window() -> None:
    aggregate = Aggregate(60.0)
    aggregate.observe(ended(fault=True, outcome="replica_lost"), 0.0)
    aggregate.observe(ended(), 30.0)
    assert aggregate.snapshot(30.0).error_rate == 0.5
    assert aggregate.snapshot(80.0).error_rate == 0.0
    assert aggregate.snapshot(80.0).requests == 1
    assert aggregate.snapshot(200.0).requests == 0


def test_the_counts_of_a_prefix_cache_are_totals_of_which_a_lost_report_takes_nothing_away() -> None:
    aggregate = Aggregate(60.0)
    first = CacheStats(enabled=True, lookups=2, hits=1, hit_tokens=10, bytes=5)
    later = CacheStats(
        enabled=True, lookups=9, hits=4, hit_tokens=40, disk_hit_tokens=16, evicted=3, dropped=1, bytes=7, disk_bytes=8
    )
    other = CacheStats(enabled=True, lookups=1)
    for replica, stats in (("r1", first), ("r1", later), ("r2", other)):
        aggregate.observe(steps(replica=replica, prefixes=stats), 1.0)
    assert numbers(aggregate, metrics.PREFIX_LOOKUPS) == {("m",): 10}
    assert numbers(aggregate, metrics.PREFIX_HITS) == {("m",): 4}
    assert numbers(aggregate, metrics.PREFIX_TOKENS) == {("m", "memory"): 24, ("m", "disk"): 16}
    assert numbers(aggregate, metrics.PREFIX_EVICTIONS) == {("m",): 3}
    assert numbers(aggregate, metrics.PREFIX_DROPPED) == {("m",): 1}
    assert numbers(aggregate, metrics.PREFIX_BYTES)["r1", "m", "memory"] == 7
    aggregate.observe(SystemObserved((actor("r2 (m)"),)), 2.0)
    assert set(numbers(aggregate, metrics.PREFIX_BYTES)) == {("r2", "m", "memory"), ("r2", "m", "disk")}
