from __future__ import annotations

import attrs

from mlx_serving.actors.messages.qos import Quantiles, TelemetrySnapshot
from mlx_serving.actors.qos.slo import MIN_REQUESTS, judge
from mlx_serving.config.schema import Slo

NOTHING = Quantiles(0, 0.0, 0.0, 0.0)
QUIET = TelemetrySnapshot(60.0, 1.0, NOTHING, NOTHING, NOTHING, 0.0, 0, 0.0)
SLO = Slo(first_token_p95=1.0, inter_token_p95=0.1, queue_p95=2.0, error_rate=0.05)


def measured(p95: float) -> Quantiles:
    return Quantiles(10, p95 / 2, p95, p95 * 2)


def violated(slo: Slo = SLO, **changes: object) -> set[str]:
    snapshot = attrs.evolve(QUIET, **changes)  # type: ignore[arg-type]
    return {verdict.objective for verdict in judge(snapshot, slo) if verdict.is_violated}


def test_silence_is_no_violation() -> None:
    assert violated() == set()
    assert len(judge(QUIET, SLO)) == 4


def test_each_objective_is_judged_by_its_own_measure() -> None:
    assert violated(first_token=measured(1.1)) == {"first_token"}
    assert violated(inter_token=measured(0.11)) == {"inter_token"}
    assert violated(queue_time=measured(2.1)) == {"queue"}
    assert violated(requests=100, error_rate=0.06) == {"error_rate"}


def test_a_measure_at_its_limit_is_met() -> None:
    assert violated(first_token=measured(1.0), queue_time=measured(2.0), oldest_wait=2.0) == set()


def test_the_oldest_waiting_request_speaks_for_the_queue() -> None:
    assert violated(oldest_wait=2.1) == {"queue"}
    assert violated(oldest_wait=2.1, queue_time=measured(0.1)) == {"queue"}


def test_a_few_requests_make_no_error_rate() -> None:
    assert violated(requests=MIN_REQUESTS - 1, error_rate=1.0) == set()
    assert violated(requests=MIN_REQUESTS, error_rate=1.0) == {"error_rate"}


def test_a_limit_of_zero_switches_an_objective_off() -> None:
    off = Slo(first_token_p95=0.0, inter_token_p95=0.0, queue_p95=0.0, error_rate=0.0)
    bad = {"first_token": measured(99.0), "inter_token": measured(99.0), "oldest_wait": 99.0}
    assert violated(off, requests=100, error_rate=1.0, **bad) == set()
