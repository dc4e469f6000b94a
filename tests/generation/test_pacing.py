"""The budget of prompt tokens between two decode steps."""

from __future__ import annotations

import itertools
import statistics

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.actors.generation.pacing import IdlePace, PrefillPace


@attrs.frozen
class Machine:
    """What steps cost on it: seconds without a chunk, and what a chunk adds to begin and for each token."""

    plain: float
    token: float
    beginning: float = 0.0

    def step(self, tokens: int) -> float:
        return self.plain + (self.beginning + tokens * self.token if tokens else 0.0)


def durations(pace: PrefillPace, machine: Machine, steps: int = 60, disturbed: int = -1) -> list[float]:
    """Of steps with prefill, after plain ones; the one of this number takes a second more."""
    for _ in range(3):
        pace.observe(machine.step(0), 0)
    found = []
    for number in range(steps):
        found.append(machine.step(pace.budget) + (number == disturbed))
        pace.observe(found[-1], pace.budget)
    return found


@given(
    plain=st.floats(0.001, 0.5),
    token=st.floats(1e-6, 0.01),
    beginning=st.floats(0, 0.1),
    slowdown=st.floats(1.2, 4),
)
def test_a_step_takes_no_longer_than_allowed_or_than_little_more_than_any_chunk_takes(
    plain: float, token: float, beginning: float, slowdown: float
) -> None:
    pace, machine = PrefillPace(slowdown, least=16, most=512), Machine(plain, token, beginning)
    settled = statistics.median(durations(pace, machine)[20:])
    assert settled <= 1.1 * max(slowdown * plain, machine.step(16) + 0.25 * beginning)
    assert 16 <= pace.budget <= 512


def test_a_fast_machine_gets_the_whole_budget() -> None:
    pace = PrefillPace(2.0, least=16, most=512)
    durations(pace, Machine(plain=0.01, token=1e-6))
    assert pace.budget == 512


@pytest.mark.parametrize("disturbed", [-1, 0, 1, 2, 5, 20])
def test_where_beginning_is_all_that_a_chunk_costs_chunks_are_large(disturbed: int) -> None:
    """As on a GPU, where a small chunk holds the streams up as long as a large one. One slow step changes nothing."""
    pace = PrefillPace(2.0, least=16, most=512)
    durations(pace, Machine(plain=0.003, token=4e-6, beginning=0.008), 40, disturbed)
    assert pace.budget > 400


@pytest.mark.parametrize("disturbed", [-1, 0, 1, 2, 5, 20])
def test_where_tokens_are_what_a_chunk_costs_chunks_are_small(disturbed: int) -> None:
    pace = PrefillPace(2.0, least=16, most=512)
    found = durations(pace, Machine(plain=0.03, token=1.7e-3, beginning=0.008), 60, disturbed)
    assert statistics.median(found[30:]) < 0.07


def test_a_larger_chunk_is_tried_ever_more_rarely_where_none_fits() -> None:
    pace = PrefillPace(2.0, least=16, most=512)
    sizes = []
    pace.observe(0.001, 0)
    for _ in range(200):
        sizes.append(pace.budget)
        pace.observe(0.001 + pace.budget * 0.01, pace.budget)
    tries = [number for number, size in enumerate(sizes) if size > 16 and number > 5]
    assert len(tries) > 2
    waits = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert waits == sorted(waits)


def test_an_objective_in_seconds_binds_before_the_ratio() -> None:
    pace = PrefillPace(10.0, least=16, most=512, longest_seconds=0.02)
    assert durations(pace, Machine(plain=0.01, token=1e-4))[-1] <= 0.022


def test_a_step_that_hardly_used_its_budget_says_nothing() -> None:
    pace = PrefillPace(2.0, least=16, most=512)
    pace.observe(0.01, 0)
    pace.observe(0.02, pace.budget)
    before = pace.budget
    pace.observe(1.0, 3)
    assert pace.budget == before


def test_what_costs_nothing_to_begin_is_as_much_as_the_target_leaves() -> None:
    """However the cost of a token moves: dearer tokens in smaller chunks look as if beginning were all that costs."""
    pace = PrefillPace(2.0, least=4, most=512, begins=False)
    pace.observe(0.01, 0)
    found = []
    for number in range(300):
        machine = Machine(plain=0.01, token=4e-4 * (1 + number / 100))
        found.append(machine.step(pace.budget))
        pace.observe(found[-1], pace.budget)
    assert max(found[30:]) < 0.0215
    assert statistics.median(found[30:]) > 0.018


def test_the_least_is_never_exceeded_for_a_trial_where_nothing_is_to_begin() -> None:
    pace = PrefillPace(2.0, least=4, most=512, begins=False)
    pace.observe(0.001, 0)
    for _ in range(200):
        assert pace.budget == 4
        pace.observe(0.001 + pace.budget * 0.01, pace.budget)


def test_steps_without_prompts_are_asked_for_once_other_rows_decode() -> None:
    pace = PrefillPace(2.0, least=4, most=512, begins=False)
    pace.observe(0.003, 0, rows=1)
    given = [pace.allowance(8) for _ in range(100)]
    runs = [(key, len(list(run))) for key, run in itertools.groupby(given)]
    assert [key > 0 for key, _ in runs] == [True, False, True, False, True]
    assert runs[1][1] < 0.2 * runs[0][1]
    pace.observe(0.009, 0, rows=8)
    assert all(pace.allowance(rows) for rows in (8, 7, 9, 6) for _ in range(100))


def test_steps_without_prompts_are_asked_for_where_none_was_ever_seen() -> None:
    pace = PrefillPace(slowdown=2.0, least=4, most=512, begins=False)
    allowed = []
    for _ in range(200):
        allowed.append(pace.allowance(rows=4))
        pace.observe(0.010 + allowed[-1] * 0.001, allowed[-1], rows=4)
    assert 0 in allowed[:50]
    assert allowed[-1] == pytest.approx(10, abs=1)  # ten milliseconds more are 2.0 times a plain step


def test_the_target_is_that_of_the_rows_of_now() -> None:
    pace = PrefillPace(2.0, least=4, most=512, begins=False)
    for _ in range(3):
        pace.observe(0.003, 0, rows=1)
    pace.observe(0.01, 0, rows=8)
    machine = Machine(plain=0.01, token=1e-3)
    for _ in range(30):
        pace.observe(machine.step(pace.budget), pace.budget, rows=8)
    assert pace.budget == 10


WIDTHS = (16, 32, 64, 128, 256, 512)


def _known(machine: Machine) -> PrefillPace:
    """A pace that was told what chunks take on a machine."""
    pace = PrefillPace(2.0, 8, 512)
    pace.expect([(tokens, machine.step(tokens) - machine.plain) for tokens in WIDTHS])
    return pace


def beside(
    pace: PrefillPace, machine: Machine, tokens: int = 4096, attending: float = 0.0, filled: int = 0
) -> tuple[list[int], float]:
    """Chunks of a prompt, and the longest step with one; each place of a chunk attends to what is before it."""
    for _ in range(3):
        pace.observe(machine.plain, 0, rows=8)
    chunks, longest = [], 0.0
    while filled < tokens:
        width = pace.allowance(8, filled)
        seconds = machine.step(width) + width * filled * attending
        pace.observe(seconds, width, 8, filled)
        chunks.append(width)
        longest, filled = max(longest, seconds), filled + width
    return chunks, longest


def test_what_chunks_are_known_to_take_is_not_tried_out() -> None:
    """The widest that takes little more than the least, from the first one on."""
    chunks, _ = beside(_known(machine := Machine(plain=0.004, beginning=0.006, token=0.000015)), machine)
    assert set(chunks) == {64}


def test_wider_chunks_that_other_kernels_take_are_left_alone() -> None:
    """As with 4-bit weights, which are dequantised for more than 64 rows."""
    times = {16: 0.009, 32: 0.009, 64: 0.0095, 128: 0.025, 256: 0.025, 512: 0.026}
    pace = PrefillPace(2.0, 8, 512)
    pace.expect(list(times.items()) * 3)
    for _ in range(3):
        pace.observe(0.007, 0)
    for filled in range(0, 4096, 64):
        assert pace.allowance(1, filled) == 64
        pace.observe(0.007 + times[64], 64)


def test_one_slow_chunk_among_those_that_were_timed_does_not_count() -> None:
    pace = PrefillPace(2.0, 8, 512)
    pace.expect([(16, 0.003), (32, 0.5), (64, 0.005), (16, 0.3), (16, 0.003), (32, 0.003)])
    pace.observe(0.003, 0)
    assert pace.allowance(1) == 32


def test_behind_a_cached_prefix_one_chunk_tells_what_attention_costs() -> None:
    machine = Machine(plain=0.006, beginning=0.003, token=0.000005)
    attending = 5e-9
    pace = _known(machine)
    chunks, _ = beside(pace, machine, 8192, attending, filled=4096)
    slow = [width for width in chunks if machine.step(width) + width * 4096 * attending > 2 * machine.plain]
    assert len(slow) == 1


def test_what_attention_costs_is_charged_to_the_chunk_that_attends() -> None:
    """Also where the next one, of another prompt, is set going before the last one's time is known."""
    pace = _known(machine := Machine(plain=0.006, beginning=0.003, token=0.000005))
    pace.observe(machine.plain, 0, rows=8)
    for _ in range(40):
        deep = pace.allowance(8, 6000)
        pace.allowance(8, 0)
        pace.observe(machine.step(deep) + deep * 6000 * 5e-9, deep, 8, 6000)
    assert machine.step(deep) + deep * 6000 * 5e-9 < 2.1 * machine.plain
    wide = pace.allowance(8, 0)
    assert wide > deep
    assert machine.step(wide) < 2.1 * machine.plain


def test_after_a_step_that_cannot_be_true_the_next_chunk_is_the_least_until_it_comes_again() -> None:
    pace = _known(machine := Machine(plain=0.006, beginning=0.009, token=0.000005))
    pace.observe(machine.plain, 0, rows=8)
    wide = pace.allowance(8, 6000)
    assert wide > 16
    pace.observe(3 * machine.step(wide), wide, 8, 6000)
    assert pace.allowance(8, 6000) == 16
    pace.observe(machine.step(16), 16, 8, 6000)
    assert pace.allowance(8, 6000) == wide
    pace.observe(3 * machine.step(wide), wide, 8, 6000)
    assert pace.allowance(8, 6000) < wide


def test_chunks_get_smaller_as_more_is_before_them_and_wide_again_with_the_next_prompt() -> None:
    machine = Machine(plain=0.006, beginning=0.009, token=0.000005)
    pace = _known(machine)
    for _ in range(2):
        chunks, longest = beside(pace, machine, attending=2e-8)
        assert chunks == sorted(chunks, reverse=True)
        assert (chunks[0], chunks[-1] < 128) == (256, True)
        assert longest < machine.plain + 2 * machine.beginning


def test_a_host_that_has_become_slow_does_not_leave_chunks_small() -> None:
    machine = Machine(plain=0.004, beginning=0.006, token=0.000005)
    pace = _known(machine)
    widest, _ = beside(pace, machine)
    slow = attrs.evolve(machine, plain=0.008, beginning=0.012)
    for _ in range(12):
        chunks, longest = beside(pace, slow)
    assert chunks[-1] >= widest[-1] == 128
    assert longest <= slow.step(512)


@given(rate=st.floats(50, 1e6))
def test_chunks_take_a_quarter_of_a_second_where_nothing_decodes(rate: float) -> None:
    pace = IdlePace(128, 2048)
    for _ in range(8):
        pace.observe(pace.budget / rate, pace.budget)
    assert pace.budget == pytest.approx(min(2048, max(128, rate / 4)), rel=0.02)


def test_one_that_was_held_up_does_not_spoil_the_idle_pace() -> None:
    pace = IdlePace(128, 2048)
    for _ in range(4):
        pace.observe(pace.budget / 1e5, pace.budget)
    pace.observe(100.0, pace.budget)
    assert pace.budget == 1024
