"""Batching's decisions, with a hand-moved clock."""

import hypothesis.strategies as st
from hypothesis import given, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from mlx_serving.actors.batching.queue import WaitingLine
from mlx_serving.actors.batching.scheduler import Scheduler
from mlx_serving.actors.messages.batching import SequenceQueued
from mlx_serving.actors.messages.values import PRIORITIES, Priority, Sampling, Stopping, pack_ids


def sequence(
    number: int,
    *,
    priority: Priority = "normal",
    tenant: str = "",
    at: float = 0.0,
    kv_bytes: int = 10,
    tokens: int = 4,
    model: str = "m",
) -> SequenceQueued:
    return SequenceQueued(
        number,
        model,
        pack_ids(range(tokens)),
        Sampling(),
        Stopping(max_tokens=tokens),
        kv_bytes,
        at,
        priority=priority,
        tenant=tenant,
    )


def served(scheduler: Scheduler, now: float = 0.0) -> list[int]:
    return [assignment.sequence.sequence_id for assignment in scheduler.decide(now)]


def test_nothing_runs_without_a_replica_and_all_fits_when_one_is_up() -> None:
    scheduler = Scheduler(ageing=10)
    scheduler.enqueue(sequence(1))
    assert served(scheduler) == []
    scheduler.replica_up("r", "m", slots=2, kv_bytes=100)
    assert served(scheduler) == [1]


def test_an_urgent_request_overtakes() -> None:
    scheduler = Scheduler(ageing=10)
    scheduler.enqueue(sequence(1, priority="low"))
    scheduler.enqueue(sequence(2, priority="normal", at=1))
    scheduler.enqueue(sequence(3, priority="high", at=2))
    scheduler.replica_up("r", "m", slots=3, kv_bytes=100)
    assert served(scheduler, 2) == [3, 2, 1]


def test_a_low_request_that_waits_long_enough_goes_before_a_new_urgent_one() -> None:
    scheduler = Scheduler(ageing=10)
    scheduler.enqueue(sequence(1, priority="low", at=0))
    scheduler.enqueue(sequence(2, priority="high", at=20))
    scheduler.replica_up("r", "m", slots=1, kv_bytes=100)
    assert served(scheduler, 20) == [1]


def test_a_tenant_with_many_requests_delays_its_own() -> None:
    scheduler = Scheduler(ageing=1000)
    for number in range(10):
        scheduler.enqueue(sequence(number, tenant="crowd"))
    scheduler.enqueue(sequence(100, tenant="single", at=1))
    scheduler.replica_up("r", "m", slots=2, kv_bytes=1000)
    assert 100 in served(scheduler, 1)


def test_a_request_that_does_not_fit_now_waits_and_is_not_overtaken() -> None:
    scheduler = Scheduler(ageing=10)
    scheduler.replica_up("r", "m", slots=8, kv_bytes=100)
    scheduler.enqueue(sequence(1, kv_bytes=60))
    assert served(scheduler) == [1]
    scheduler.enqueue(sequence(2, kv_bytes=60, at=1))
    scheduler.enqueue(sequence(3, kv_bytes=10, at=2))
    assert served(scheduler, 2) == []
    scheduler.ended("r", [1])
    assert served(scheduler, 3) == [2, 3]


def test_a_paused_sequence_frees_its_row_and_keeps_its_bytes() -> None:
    scheduler = Scheduler(ageing=10)
    scheduler.replica_up("r", "m", slots=1, kv_bytes=30)
    for number in (1, 2, 3):
        scheduler.enqueue(sequence(number, kv_bytes=15, at=number))
    assert served(scheduler, 3) == [1]
    assert scheduler.pause(1) == "r"
    assert served(scheduler, 3) == [2]
    assert scheduler.pause(2) == "r"
    assert served(scheduler, 3) == []
    assert scheduler.resume(1) == "r"
    observed = scheduler.observe(3)
    assert (observed.waiting, observed.running, observed.paused, observed.reserved_kv_bytes) == (1, 1, 1, 30)


def test_a_lost_replica_gives_its_sequences_back() -> None:
    scheduler = Scheduler(ageing=10)
    scheduler.replica_up("r", "m", slots=4, kv_bytes=100)
    scheduler.enqueue(sequence(1))
    scheduler.enqueue(sequence(2))
    assert served(scheduler) == [1, 2]
    assert scheduler.replica_down("r") == (1, 2)
    assert scheduler.abort(1) is None
    assert scheduler.observe(0).running == 0


def test_an_aborted_sequence_leaves_the_line_or_names_its_replica() -> None:
    scheduler = Scheduler(ageing=10)
    scheduler.enqueue(sequence(1))
    assert scheduler.abort(1) is None
    scheduler.replica_up("r", "m", slots=4, kv_bytes=100)
    assert served(scheduler) == []
    scheduler.enqueue(sequence(2))
    served(scheduler)
    assert scheduler.abort(2) == "r"


def test_clients_that_come_and_go_leave_nothing_in_the_line() -> None:
    line = WaitingLine(ageing=10)
    line.add(sequence(0, priority="high"), 8)
    for number in range(1, 5000):
        line.add(sequence(number, tenant=f"t{number}"), 8)
        line.remove(number)
    assert len(line) == 1
    assert sum(map(len, line._classes.values())) < 200
    assert len(line._tenant_tags) < 200
    assert line.pop(0.0) == sequence(0, priority="high")


def test_a_replica_that_is_announced_twice_keeps_what_it_holds() -> None:
    scheduler = Scheduler(ageing=10)
    assert scheduler.replica_up("r", "m", slots=1, kv_bytes=100)
    scheduler.enqueue(sequence(1))
    assert served(scheduler) == [1]
    assert not scheduler.replica_up("r", "m", slots=1, kv_bytes=100)
    assert scheduler.observe(0).running == 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PRIORITIES), st.sampled_from("abc"), st.integers(1, 40)), max_size=40))
def test_everyone_is_served_in_the_end(asked: list[tuple[Priority, str, int]]) -> None:
    scheduler = Scheduler(ageing=1)
    scheduler.replica_up("r", "m", slots=2, kv_bytes=50)
    for number, (priority, tenant, kv_bytes) in enumerate(asked):
        scheduler.enqueue(sequence(number, priority=priority, tenant=tenant, kv_bytes=kv_bytes, at=number))
    done: list[int] = []
    for now in range(len(asked) + 1):
        started = served(scheduler, now)
        done += started
        scheduler.ended("r", started)
    assert sorted(done) == list(range(len(asked)))


class Credits(RuleBasedStateMachine):
    """Whatever happens in whatever order, a replica never holds more than it granted."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(ageing=5)
        self.scheduler.replica_up("r", "m", slots=3, kv_bytes=100)
        self.number = 0
        self.held: dict[int, int] = {}
        self.paused: set[int] = set()

    running = Bundle("running")

    @rule(target=running, kv_bytes=st.integers(1, 60), priority=st.sampled_from(PRIORITIES))
    def enqueue(self, kv_bytes: int, priority: Priority) -> int:
        self.number += 1
        self.scheduler.enqueue(sequence(self.number, kv_bytes=kv_bytes, priority=priority, at=self.number))
        self._decide()
        return self.number

    def _decide(self) -> None:
        for assignment in self.scheduler.decide(self.number):
            self.held[assignment.sequence.sequence_id] = assignment.sequence.kv_bytes
            assert len(set(self.held) - self.paused) <= 3 + len(self.paused)

    @rule(number=consumes(running))
    def end(self, number: int) -> None:
        if number in self.held:
            self.scheduler.ended("r", [number])
            del self.held[number]
            self.paused.discard(number)
        else:
            assert self.scheduler.abort(number) is None
        self._decide()

    @rule(number=running)
    def pause(self, number: int) -> None:
        if self.scheduler.pause(number):
            self.paused.add(number)
        self._decide()

    @rule(number=running)
    def resume(self, number: int) -> None:
        if self.scheduler.resume(number):
            self.paused.discard(number)

    @invariant()
    def books_agree(self) -> None:
        observed = self.scheduler.observe(self.number)
        assert observed.reserved_kv_bytes == sum(self.held.values())
        assert observed.reserved_kv_bytes <= 100
        assert observed.paused == len(self.paused)
        assert observed.running == len(self.held) - len(self.paused)


TestCredits = Credits.TestCase
TestCredits.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_models_share_the_memory_for_caches_whatever_their_replicas_granted() -> None:
    scheduler = Scheduler(20.0)
    scheduler.share({"m": 50})
    scheduler.replica_up("r", "m", slots=8, kv_bytes=1000)
    for number in (1, 2, 3):
        scheduler.enqueue(sequence(number, kv_bytes=25, at=number))
    assert [each.sequence.sequence_id for each in scheduler.decide(10.0)] == [1, 2]
    scheduler.share({"m": 25, "other": 25})
    scheduler.ended("r", [1])
    assert scheduler.decide(11.0) == [], "what runs fills the smaller share"
    scheduler.ended("r", [2])
    assert [each.sequence.sequence_id for each in scheduler.decide(12.0)] == [3]
