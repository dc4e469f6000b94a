"""Who stays in memory, who leaves, and in which order."""

from __future__ import annotations

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mlx_serving.actors.admission.residency import LEAST_TOKENS, Need, Residency, need_of
from mlx_serving.actors.errors import ModelTooLarge, Overloaded
from mlx_serving.config.schema import Generation

MIB = 1 << 20


class Memory:
    """A residency of 100 MiB whose busy models the test chooses."""

    def __init__(self, *pinned: str) -> None:
        self.busy: set[str] = set()
        self.residency = Residency(100 * MIB, lambda name: name in self.busy, pinned)

    def bring(self, name: str, size: int, now: float) -> tuple[str, ...]:
        """Claim, let those that must leave be gone, load; returns who left."""
        leaving = self.residency.claim(name, Need(size * MIB, 0), now)
        for each in leaving:
            self.residency.left(each)
        assert self.residency.startable() == (name,)
        assert self.residency.arrived(name, Need(size * MIB, 0), now) == ()
        return leaving


@pytest.fixture
def memory() -> Memory:
    return Memory()


def test_the_least_recently_used_model_leaves_for_a_new_one(memory: Memory) -> None:
    for now, name in enumerate("abc"):
        memory.bring(name, 30, now)
    memory.residency.used("a", 10)
    assert memory.bring("d", 30, 11) == ("b",)
    assert memory.bring("e", 60, 12) == ("c", "a")


def test_no_more_models_leave_than_it_takes(memory: Memory) -> None:
    memory.bring("small", 10, 1)
    memory.bring("large", 80, 2)
    assert memory.bring("wanted", 70, 3) == ("large",)


def test_pinned_and_busy_models_stay() -> None:
    memory = Memory("pinned")
    memory.bring("pinned", 30, 1)
    memory.bring("busy", 30, 2)
    memory.bring("idle", 30, 3)
    memory.busy.add("busy")
    assert memory.bring("wanted", 40, 4) == ("idle",)


def test_a_model_that_can_never_fit_is_the_callers_error_with_the_numbers() -> None:
    memory = Memory("pinned")
    with pytest.raises(ModelTooLarge, match=r"101 MiB of weights.*limit for models is 100 MiB"):
        memory.residency.claim("huge", Need(101 * MIB, 5), 0)
    memory.bring("pinned", 60, 1)
    with pytest.raises(ModelTooLarge, match="pinned models hold 60 MiB"):
        memory.residency.claim("large", Need(50 * MIB, 0), 2)
    assert memory.residency.bytes == 60 * MIB


def test_a_model_that_cannot_fit_beside_busy_ones_is_an_overload(memory: Memory) -> None:
    memory.bring("busy", 60, 1)
    memory.bring("idle", 30, 2)
    memory.busy.add("busy")
    with pytest.raises(Overloaded, match="busy 60 MiB") as caught:
        memory.residency.claim("wanted", Need(70 * MIB, 0), 3)
    assert caught.value.retry_after
    idle = memory.residency.get("idle")
    assert idle is not None
    assert idle.phase == "resident", "nobody leaves for a model that cannot come"


def test_a_wanted_model_waits_until_its_predecessor_is_gone_in_fact(memory: Memory) -> None:
    memory.bring("old", 80, 1)
    assert memory.residency.claim("new", Need(80 * MIB, 0), 2) == ("old",)
    assert memory.residency.startable() == ()
    memory.residency.left("old")
    assert memory.residency.startable() == ("new",)
    assert memory.residency.startable() == ()


def test_claims_of_one_model_coalesce(memory: Memory) -> None:
    need = Need(80 * MIB, 0)
    assert [memory.residency.claim("m", need, now) for now in range(3)] == [(), (), ()]
    assert memory.residency.startable() == ("m",)


def test_a_model_that_is_larger_than_predicted_makes_idle_ones_leave(memory: Memory) -> None:
    memory.bring("old", 40, 1)
    memory.residency.claim("new", Need(40 * MIB, 0), 2)
    memory.residency.startable()
    memory.busy.add("old")
    assert memory.residency.arrived("new", Need(80 * MIB, 0), 3) == ()
    memory.busy.clear()
    assert memory.residency.relieve() == ("old",)


def test_the_last_model_stays_whatever_it_takes(memory: Memory) -> None:
    memory.residency.arrived("huge", Need(300 * MIB, 0), 1)
    assert memory.residency.relieve() == ()
    assert memory.residency.caches() == {"huge": 0}


def test_idle_models_leave_after_their_time_but_for_pinned_and_busy_ones() -> None:
    memory = Memory("pinned")
    for name in ("pinned", "busy", "idle", "fresh"):
        memory.bring(name, 10, 0)
    memory.busy.add("busy")
    memory.residency.used("fresh", 50)
    assert memory.residency.idle(60, 60) == ("idle",)
    assert memory.residency.idle(60, 60) == (), "it is leaving already"


def test_a_large_model_makes_do_with_less_cache_than_it_would_like(memory: Memory) -> None:
    memory.residency.claim("large", Need(90 * MIB, 50 * MIB), 0)
    assert memory.residency.caches() == {"large": 10 * MIB}


def test_what_is_left_is_shared_equally_between_caches(memory: Memory) -> None:
    memory.residency.claim("a", Need(20 * MIB, 10 * MIB), 0)
    assert memory.residency.caches() == {"a": 80 * MIB}
    memory.residency.claim("b", Need(30 * MIB, 20 * MIB), 0)
    assert memory.residency.caches() == {"a": 20 * MIB, "b": 30 * MIB}


def test_the_need_is_predicted_from_the_record_or_the_configured_cache() -> None:
    assert need_of(100, 2048, 10, Generation()) == Need(100, 20480)
    assert need_of(100, 1 << 20, 10, Generation()) == Need(100, 10 * LEAST_TOKENS)
    assert need_of(100, 2048, 10, Generation(kv_bytes=7)) == Need(100, 7)


NAMES = st.sampled_from("abcdef")


class Interleavings(RuleBasedStateMachine):
    """Loads, unloads, streams and time in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.busy: set[str] = set()
        self.residency = Residency(100, lambda name: name in self.busy, ("a",))
        self.needs: dict[str, Need] = {}
        self.loading: set[str] = set()
        self.leaving: set[str] = set()
        self.now = 0.0

    def _let_go(self, names: tuple[str, ...]) -> None:
        assert not set(names) & (self.busy | {"a"} | self.loading | self.leaving)
        self.leaving |= set(names)

    @rule(name=NAMES, weights=st.integers(0, 120), cache=st.integers(0, 50))
    def want(self, name: str, weights: int, cache: int) -> None:
        self.now += 1
        known = self.residency.get(name) is not None
        try:
            self._let_go(self.residency.claim(name, Need(weights, cache), self.now))
        except (ModelTooLarge, Overloaded):
            assert not known
            return
        self.needs.setdefault(name, Need(weights, cache))

    @rule()
    def start(self) -> None:
        self.loading |= set(self.residency.startable())

    @rule(name=NAMES)
    def arrive(self, name: str) -> None:
        if name in self.loading:
            self.loading.discard(name)
            resident = self.residency.get(name)
            assert resident is not None
            self._let_go(self.residency.arrived(name, resident.need, self.now))

    @rule(name=NAMES)
    def go(self, name: str) -> None:
        if name in self.leaving | self.loading:
            self.residency.left(name)
            self.leaving.discard(name)
            self.loading.discard(name)
            self.needs.pop(name, None)

    @rule(name=NAMES, busy=st.booleans())
    def stream(self, name: str, busy: bool) -> None:
        resident = self.residency.get(name)
        if resident is not None and resident.phase == "resident" and busy:
            self.busy.add(name)
        else:
            self.busy.discard(name)
        self.residency.used(name, self.now)

    @rule(seconds=st.integers(0, 5))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds
        self._let_go(self.residency.idle(self.now, 3))
        self._let_go(self.residency.relieve())

    @invariant()
    def what_is_in_memory_stays_under_the_limit(self) -> None:
        assert self.residency.bytes <= 100

    @invariant()
    def caches_and_weights_stay_under_the_limit_once_those_that_leave_are_gone(self) -> None:
        present = {name for name in self.needs if name not in self.leaving}
        if present and not self.leaving:
            caches = self.residency.caches()
            weights = sum(self.needs[name].weights for name in present)
            assert weights + sum(caches.values()) <= 100

    def teardown(self) -> None:
        """Whoever waits comes in once those that leave are gone."""
        self.busy.clear()
        for name in list(self.leaving):
            self.residency.left(name)
        self.residency.startable()
        phases = {each.phase for name in self.needs if (each := self.residency.get(name)) is not None}
        assert "waiting" not in phases


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = hypothesis_settings(max_examples=60, stateful_step_count=30, deadline=None)
