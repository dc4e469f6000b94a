"""The policy, driven snapshot by snapshot with a hand-moved clock."""

from __future__ import annotations

import attrs
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.actors.qos.policy import STEPS, AuditEntry, Policy
from mlx_serving.actors.qos.slo import Verdict
from mlx_serving.config.schema import Qos

QOS = Qos(violations_to_act=3, recoveries_to_stop=5, cooldown_seconds=10.0)
LIMIT = 5.0


class Drive:
    """One snapshot a second."""

    def __init__(self, qos: Qos = QOS) -> None:
        self.policy = Policy()
        self.qos = qos
        self.now = 100.0

    def queue(self, *measured: float) -> list[AuditEntry]:
        entries = []
        for value in measured:
            self.now += 1.0
            entries += self.policy.decide((Verdict("queue", value, LIMIT),), self.qos, self.now)
        return entries

    def shed(self) -> tuple[str, ...]:
        return self.policy.shed


def whats(entries: list[AuditEntry]) -> list[str]:
    return [entry.what for entry in entries]


def test_too_few_violations_in_a_row_do_nothing() -> None:
    drive = Drive()
    assert drive.queue(9, 9, 1, 9, 9, 1, 9, 9) == []
    assert drive.shed() == ()


def test_enough_violations_in_a_row_shed_the_lowest_class() -> None:
    drive = Drive()
    entries = drive.queue(9, 8, 7)
    assert whats(entries) == ["violated", "shed"]
    assert (entries[1].shed, entries[1].measured, entries[1].limit) == (("low",), 7, LIMIT)
    assert drive.shed() == ("low",)


def test_it_escalates_once_after_another_full_round_and_the_cooldown_and_never_sheds_high() -> None:
    drive = Drive()
    drive.queue(9, 9, 9)
    assert whats(drive.queue(*[9] * 9)) == ["effect"]
    assert drive.shed() == ("low",)
    assert whats(drive.queue(9)) == ["shed"]
    assert drive.shed() == ("low", "normal")
    assert whats(drive.queue(*[9] * 50)) == ["effect"]
    assert drive.shed() == ("low", "normal")


def test_without_a_cooldown_a_full_round_is_still_needed_for_each_step() -> None:
    drive = Drive(attrs.evolve(QOS, cooldown_seconds=0.0))
    drive.queue(9, 9, 9, 9, 9)
    assert drive.shed() == ("low",)
    drive.queue(9)
    assert drive.shed() == ("low", "normal")


def test_a_single_healthy_snapshot_starts_the_round_for_the_next_step_again() -> None:
    drive = Drive(attrs.evolve(QOS, cooldown_seconds=0.0))
    drive.queue(9, 9, 9)
    drive.queue(9, 9, 1, 9, 9)
    assert drive.shed() == ("low",)
    drive.queue(9)
    assert drive.shed() == ("low", "normal")


def test_it_stops_shedding_after_enough_healthy_snapshots_in_a_row() -> None:
    drive = Drive()
    drive.queue(9, 9, 9)
    drive.queue(1, 1, 1, 1, 9, 1, 1, 1, 1)
    assert drive.shed() == ("low",)
    entries = drive.queue(1)
    assert whats(entries) == ["recovered", "stopped"]
    assert drive.shed() == ()


def test_after_a_stop_the_cooldown_passes_before_the_next_remedy() -> None:
    drive = Drive()
    drive.queue(9, 9, 9, 1, 1, 1, 1, 1)
    drive.queue(*[9] * 9)
    assert drive.shed() == ()
    drive.queue(9)
    assert drive.shed() == ("low",)


def test_the_effect_of_a_step_is_looked_at_after_one_round() -> None:
    for after, outcome in ((6.0, "improved: was 9.000"), (9.0, "not improved: was 9.000")):
        drive = Drive()
        drive.queue(9, 9, 9)
        entries = drive.queue(8, 8, after)
        assert whats(entries) == ["effect"]
        assert (entries[0].measured, entries[0].detail) == (after, outcome)


def test_other_objectives_are_audited_and_move_no_lever() -> None:
    policy = Policy()
    entries = []
    for second in range(10):
        measured = 0.5 if second < 4 else 0.0
        entries += policy.decide((Verdict("error_rate", measured, 0.05),), QOS, float(second))
    assert [(entry.what, entry.objective) for entry in entries] == [
        ("violated", "error_rate"),
        ("recovered", "error_rate"),
    ]
    assert policy.shed == ()


def test_an_objective_that_is_switched_off_counts_as_healthy() -> None:
    drive = Drive()
    drive.queue(9, 9, 9)
    for _ in range(QOS.recoveries_to_stop):
        drive.now += 1
        drive.policy.decide((Verdict("queue", 9, 0.0),), QOS, drive.now)
    assert drive.shed() == ()


def test_when_telemetry_falls_silent_nothing_is_shed() -> None:
    drive = Drive()
    drive.queue(9, 9, 9)
    entries = drive.policy.fall_silent(drive.now)
    assert whats(entries) == ["stopped"]
    assert drive.shed() == ()
    assert drive.policy.fall_silent(drive.now) == []


@given(
    measured=st.lists(st.sampled_from([1.0, 9.0]), max_size=120),
    act=st.integers(1, 4),
    stop=st.integers(1, 4),
    cooldown=st.sampled_from([0.0, 2.0, 10.0]),
)
def test_whatever_happens_the_rules_hold(measured: list[float], act: int, stop: int, cooldown: float) -> None:
    drive = Drive(Qos(violations_to_act=act, recoveries_to_stop=stop, cooldown_seconds=cooldown))
    steps_at: list[float] = []
    for index, value in enumerate(measured):
        before = drive.shed()
        entries = drive.queue(value)
        after = drive.shed()
        assert "high" not in after
        if len(after) > len(before):
            assert STEPS.index(after) == STEPS.index(before) + 1
            assert index + 1 >= act
            assert all(value > LIMIT for value in measured[index + 1 - act : index + 1])
            assert not steps_at or drive.now - steps_at[-1] >= cooldown
            steps_at.append(drive.now)
        if len(after) < len(before):
            assert after == ()
            assert all(value <= LIMIT for value in measured[index + 1 - stop : index + 1])
        assert (before != after) == any(entry.what in ("shed", "stopped") for entry in entries)
        healthy_long_enough = index + 1 >= stop and max(measured[index + 1 - stop : index + 1]) <= LIMIT
        assert not (healthy_long_enough and after)
