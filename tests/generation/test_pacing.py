"""The budget of prompt tokens between two decode steps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.actors.generation.pacing import PrefillPace


def _settle(pace: PrefillPace, plain: float, seconds_per_token: float, steps: int = 60) -> float:
    """Run steps on a machine of these costs; the duration of the last one."""
    pace.observe(plain, 0)
    duration = plain
    for _ in range(steps):
        duration = plain + pace.budget * seconds_per_token
        pace.observe(duration, pace.budget)
    return duration


@given(
    plain=st.floats(0.001, 0.5),
    seconds_per_token=st.floats(1e-6, 0.01),
    slowdown=st.floats(1.2, 4),
)
def test_a_step_with_prefill_takes_no_longer_than_allowed(
    plain: float, seconds_per_token: float, slowdown: float
) -> None:
    pace = PrefillPace(slowdown, least=16, most=512)
    duration = _settle(pace, plain, seconds_per_token)
    least = plain + 16 * seconds_per_token
    assert duration <= max(1.1 * slowdown * plain, least * 1.01)
    assert 16 <= pace.budget <= 512


def test_a_fast_machine_gets_the_whole_budget() -> None:
    pace = PrefillPace(2.0, least=16, most=512)
    _settle(pace, 0.01, 1e-6)
    assert pace.budget == 512


def test_an_objective_in_seconds_binds_before_the_ratio() -> None:
    pace = PrefillPace(10.0, least=16, most=512, longest_seconds=0.02)
    assert _settle(pace, 0.01, 1e-4) <= 0.022


def test_a_step_that_hardly_used_its_budget_says_nothing() -> None:
    pace = PrefillPace(2.0, least=16, most=512)
    pace.observe(0.01, 0)
    before = pace.budget
    pace.observe(1.0, 3)
    assert pace.budget == before
