"""Sliding quantiles against a sorted list."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.actors.telemetry.window import ERROR, LARGEST, SLICES, SMALLEST, SlidingQuantiles

WINDOW = 60.0
values = st.floats(min_value=SMALLEST, max_value=LARGEST)


def true_quantile(values: list[float], fraction: float) -> float:
    return sorted(values)[max(1, math.ceil(fraction * len(values))) - 1]


@given(observed=st.lists(values, min_size=1, max_size=200), fraction=st.floats(min_value=0, max_value=1))
def test_a_quantile_is_within_its_error_of_the_true_one(observed: list[float], fraction: float) -> None:
    measure = SlidingQuantiles(WINDOW)
    for value in observed:
        measure.observe(value, now=0.0)
    count, (estimate,) = measure.at((fraction,), now=0.0)
    assert count == len(observed)
    assert estimate == pytest.approx(true_quantile(observed, fraction), rel=ERROR * 1.001)


@given(events=st.lists(st.tuples(st.floats(0, 20), values), max_size=100))
def test_only_what_is_inside_the_window_counts(events: list[tuple[float, float]]) -> None:
    measure = SlidingQuantiles(WINDOW)
    seen: list[tuple[float, float]] = []
    now = 0.0
    for pause, value in events:
        now += pause
        measure.observe(value, now)
        seen.append((now, value))
    count, _ = measure.at((0.5,), now)
    surely = sum(at > now - WINDOW * (1 - 1 / SLICES) for at, _ in seen)
    possibly = sum(at >= now - WINDOW for at, _ in seen)
    assert surely <= count <= possibly


@given(weights=st.lists(st.tuples(values, st.integers(1, 50)), min_size=1, max_size=30))
def test_a_weight_counts_like_repetition(weights: list[tuple[float, int]]) -> None:
    weighted, repeated = SlidingQuantiles(WINDOW), SlidingQuantiles(WINDOW)
    for value, weight in weights:
        weighted.observe(value, 1.0, weight)
        for _ in range(weight):
            repeated.observe(value, 1.0)
    assert weighted.at((0.5, 0.95, 0.99), 1.0) == repeated.at((0.5, 0.95, 0.99), 1.0)


def test_an_empty_window_has_no_values() -> None:
    measure = SlidingQuantiles(WINDOW)
    assert measure.at((0.5,), 0.0) == (0, [0.0])
    measure.observe(1.0, 0.0)
    assert measure.at((0.5,), WINDOW + 1) == (0, [0.0])


def test_values_beyond_the_bounds_count_as_the_bounds() -> None:
    measure = SlidingQuantiles(WINDOW)
    measure.observe(0.0, 0.0)
    measure.observe(math.inf, 0.0)
    count, (low, high) = measure.at((0.5, 1.0), 0.0)
    assert count == 2
    assert low == pytest.approx(SMALLEST, rel=ERROR * 1.001)
    assert high == pytest.approx(LARGEST, rel=ERROR * 1.001)


def test_memory_stays_bounded_under_endless_traffic() -> None:
    measure = SlidingQuantiles(WINDOW)
    for step in range(20_000):
        measure.observe(1e-3 * (1 + step % 997), step * 0.1)
    slices = measure._counts._slices
    assert len(slices) == SLICES
    # Three decades of values, 1 % apart either way.
    assert max(len(each.bins) for each in slices) <= math.log(1000) / (2 * ERROR) + 2
