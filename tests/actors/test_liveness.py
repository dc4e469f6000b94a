"""When an actor is taken for dead, and when it is started again."""

import pytest

from mlx_serving.actors.liveness import Pulse, backoff, verdict
from mlx_serving.config.schema import Supervision

LIMITS = Supervision(
    heartbeat_timeout=5.0, progress_timeout=30.0, restart_backoff=0.5, restart_backoff_max=4.0, max_restarts=5
)


def test_an_idle_actor_that_beats_is_well_for_ever() -> None:
    pulse = Pulse(0.0)
    for now in range(0, 1000, 4):
        pulse.beat(0, 0, now)
        assert verdict(pulse, False, now + 4, LIMITS) is None


def test_silence_is_death_sooner_for_a_control_actor_than_for_a_replica() -> None:
    pulse = Pulse(0.0)
    assert verdict(pulse, False, 6.0, LIMITS) == "no heartbeat for 6 s"
    assert verdict(pulse, True, 6.0, LIMITS) is None
    assert verdict(pulse, True, 31.0, LIMITS) is not None


def test_work_without_progress_is_death_whatever_the_heartbeats_say() -> None:
    pulse = Pulse(0.0)
    for now in range(31):
        pulse.beat(7, 3, now)
        assert verdict(pulse, True, now, LIMITS) is None
    pulse.beat(7, 3, 31)
    reason = verdict(pulse, True, 32.0, LIMITS)
    assert reason is not None
    assert "no step completed" in reason


def test_a_step_or_an_empty_queue_counts_as_progress() -> None:
    pulse = Pulse(0.0)
    for now in range(100):
        pulse.beat(now // 20, 3, now)
        assert verdict(pulse, True, now, LIMITS) is None
    pulse.beat(4, 0, 100)
    pulse.beat(4, 1, 140)
    assert verdict(pulse, True, 141.0, LIMITS) is None


def test_restarts_back_off_and_end() -> None:
    waits = [backoff(failures, LIMITS) for failures in range(1, 7)]
    assert waits == pytest.approx([0.5, 1.0, 2.0, 4.0, 4.0, None])
