import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.frontends.cli.load_report import RequestRecord, distribution, summarize, token_gaps

SECONDS = st.floats(0, 1e6, allow_nan=False)


def test_tokens_that_arrive_together_share_the_wait() -> None:
    assert token_gaps([(1.0, 1), (2.0, 1), (4.0, 4)]) == [1.0, 0.5, 0.5, 0.5, 0.5]


def test_rates_run_from_the_first_start_to_the_last_end() -> None:
    records = [
        RequestRecord(0.0, 2.0, ((0.5, 1), (2.0, 3)), prompt_tokens=7),
        RequestRecord(1.0, 4.0, ((3.0, 2), (4.0, 2)), prompt_tokens=5),
    ]
    report = summarize(records, clients=2)
    assert (report.seconds, report.tokens_per_second, report.requests_per_second) == (4.0, 2.0, 0.5)
    assert (report.prompt_tokens, report.completion_tokens) == (12, 8)
    assert (report.first_token.p50, report.first_token.max) == (0.5, 2.0)


def test_a_failed_request_counts_as_an_error_and_in_no_distribution() -> None:
    records = [RequestRecord(0.0, 1.0, ((0.5, 1),)), RequestRecord(0.0, 9.0, (), error="overloaded")]
    report = summarize(records, clients=1)
    assert report.errors == {"overloaded": 1}
    assert report.total.count == report.first_token.count == 1
    assert report.total.max == 1.0


def test_nothing_measured_is_zeros() -> None:
    assert distribution([]).count == 0


@given(st.lists(SECONDS, min_size=1))
def test_quantiles_are_measured_values_in_order(values: list[float]) -> None:
    found = distribution(values)
    row = [found.p50, found.p90, found.p95, found.p99, found.max]
    assert row == sorted(row)
    assert set(row) <= set(values)
    assert sum(value <= found.p50 for value in values) >= len(values) / 2


@given(st.lists(st.tuples(st.floats(0.001, 10), st.integers(1, 8)), min_size=1))
def test_gaps_add_up_to_the_time_after_the_first_arrival(steps: list[tuple[float, int]]) -> None:
    now, arrivals = 0.0, []
    for wait, count in steps:
        now += wait
        arrivals.append((now, count))
    gaps = token_gaps(arrivals)
    assert len(gaps) == sum(count for _, count in arrivals[1:])
    assert math.fsum(gaps) == pytest.approx(arrivals[-1][0] - arrivals[0][0])
