"""How much is proposed, on machines whose costs and acceptance are known."""

import itertools
import random
from collections.abc import Callable

import attrs
import pytest

from mlx_serving.actors.generation.speculation.acceptance import (
    DRAFT_KIND,
    RowAcceptance,
    SharedAcceptance,
    expected_tokens,
    kind_of,
)
from mlx_serving.actors.generation.speculation.costs import StepCosts
from mlx_serving.actors.generation.speculation.planner import Offer, Planner

FLAT = {1: 0.010, 2: 0.0102, 4: 0.0105, 8: 0.011, 16: 0.012, 64: 0.02}
"""An accelerator: a step costs the same for few places or many."""
STEEP = {1: 0.010, 2: 0.020, 4: 0.040, 8: 0.080, 16: 0.160}
"""A processor without reserves: every place costs as much as the first."""


@attrs.define
class Machine:
    """Runs a batch of rows that a planner guides; acceptance is drawn at `rate`."""

    seconds: Callable[[int], float]
    draft_seconds: float = 0.0
    noise: float = 0.1
    chance: random.Random = attrs.field(factory=lambda: random.Random(3))

    def run(self, planner: Planner, rate: float, steps: int = 1200, rows: int = 1, kind: int = 3) -> float:
        """Tokens a second, as a multiple of plain decoding without a planner."""
        shared = SharedAcceptance()
        acceptances = [RowAcceptance(shared) for _ in range(rows)]
        tokens, time = 0, 0.0
        for _ in range(steps):
            offers = [Offer(32, each.rate(kind), kind == DRAFT_KIND) for each in acceptances]
            plan = planner.plan([offers])
            count = 0 if plan is None else plan.tokens
            seconds = self.seconds(rows * (count + 1)) * self.chance.uniform(1 - self.noise, 1 + self.noise)
            time += seconds + count * self.draft_seconds
            if not count:
                planner.costs.saw_plain(rows, seconds)
                tokens += rows
                continue
            planner.costs.saw_wide(rows, count + 1, seconds)
            if kind == DRAFT_KIND:
                planner.costs.saw_draft(rows, count, count * self.draft_seconds)
            for each in acceptances:
                accepted = next((i for i in range(count) if self.chance.random() >= rate), count)
                each.record(kind, accepted, count)
                tokens += accepted + 1
        return tokens / time * self.seconds(rows) / rows


def tokens(planner: Planner, *offers: Offer | None) -> int:
    plan = planner.plan([offers])
    return 0 if plan is None else plan.tokens


def interpolated(curve: dict[int, float]) -> Callable[[int], float]:
    costs = StepCosts(curve)
    return costs.plain


@pytest.mark.parametrize("rows", [1, 4, 16])
@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("curve", [FLAT, STEEP])
def test_it_is_never_slower_than_plain_decoding_by_more_than_a_twentieth(
    curve: dict[int, float], rate: float, rows: int
) -> None:
    assert Machine(interpolated(curve)).run(Planner(StepCosts(curve), 8), rate, rows=rows) > 0.95


def test_where_wide_steps_are_cheap_and_proposals_good_it_gains_what_there_is_to_gain() -> None:
    best = expected_tokens(0.9, 8) * FLAT[1] / FLAT[8]
    assert Machine(interpolated(FLAT)).run(Planner(StepCosts(FLAT), 8), 0.9) > 0.85 * best


def test_a_draft_model_that_costs_as_much_as_the_model_is_left_alone() -> None:
    machine = Machine(interpolated(FLAT), draft_seconds=0.010)
    planner = Planner(StepCosts(FLAT), 8)
    assert machine.run(planner, 0.8, kind=DRAFT_KIND) > 0.95
    assert planner.saving([Offer(8, 0.8, is_drafted=True)]) == 0


def test_a_cheap_draft_model_is_run_as_far_as_it_pays() -> None:
    planner = Planner(StepCosts(FLAT), 8)
    assert Machine(interpolated(FLAT), draft_seconds=0.002).run(planner, 0.8, kind=DRAFT_KIND) > 1.5
    plain, saved = FLAT[1], planner.saving([Offer(8, 0.8, is_drafted=True)])
    assert plain / 3 < saved < plain
    assert 0 < tokens(planner, Offer(8, 0.8, is_drafted=True)) < 8


def test_a_machine_that_is_not_as_it_was_at_load_is_found_out() -> None:
    dear = Machine(lambda places: 0.010 * (1 if places == 1 else 3))
    assert dear.run(Planner(StepCosts(FLAT), 8), 0.5) > 0.95
    cheap = Machine(interpolated(FLAT))
    assert cheap.run(Planner(StepCosts(STEEP), 8), 0.9, steps=6000) > 2


def test_without_offers_nothing_is_proposed_and_no_probe_comes_due() -> None:
    planner = Planner(StepCosts(FLAT), 8)
    assert not any(planner.plan([[None] * 4]) for _ in range(5000))


def test_probes_grow_rarer_while_they_show_nothing_new() -> None:
    planner = Planner(StepCosts(STEEP), 8)
    probes = [step for step in range(5000) if planner.plan([[Offer(8, 0.1)]])]
    gaps = [after - before for before, after in itertools.pairwise(probes)]
    assert len(probes) < 8
    assert gaps == sorted(gaps)


def test_the_longest_proposal_is_bounded_by_setting_and_offer() -> None:
    costs = StepCosts(FLAT)
    assert tokens(Planner(costs, 8), Offer(32, 0.99)) == 8
    assert tokens(Planner(costs, 8), Offer(3, 0.99)) == 3


def test_one_good_row_does_not_slow_many_others_down() -> None:
    assert tokens(Planner(StepCosts(STEEP), 8), Offer(8, 0.9), *[None] * 15) == 0


def test_of_several_ways_to_propose_the_fastest_is_taken() -> None:
    costs = StepCosts(FLAT)
    costs.saw_draft(1, 1, 0.002)
    lookup, draft = Offer(8, 0.6), Offer(8, 0.7, is_drafted=True)
    plan = Planner(costs, 8).plan([[lookup], [draft]])
    assert plan is not None
    assert plan.choice == 0
    better = Planner(costs, 8).plan([[lookup], [Offer(8, 0.99, is_drafted=True)]])
    assert better is not None
    assert better.choice == 1


def test_experience_moves_a_row_and_what_is_expected_of_the_next() -> None:
    shared = SharedAcceptance()
    row = RowAcceptance(shared)
    before = row.rate(3)
    for _ in range(50):
        row.record(3, 0, 4)
    assert row.rate(3) < 0.1 < before
    assert RowAcceptance(shared).rate(3) < before
    assert RowAcceptance(shared).rate(2) == pytest.approx(0.5)


def test_only_tokens_up_to_the_first_difference_were_tried() -> None:
    row = RowAcceptance(SharedAcceptance())
    row.record(3, 2, 8)
    assert row._rates[3].tried == 3
    row.record(3, 8, 8)
    assert row._rates[3].accepted == pytest.approx(2 * 0.93 + 8)


def test_a_longer_agreement_is_another_kind() -> None:
    kinds = [kind_of(agreement) for agreement in (1, 3, 6, 12, 32)]
    assert kinds == [1, 2, 3, 4, 4]
    assert DRAFT_KIND not in kinds


def test_plain_steps_that_were_measured_too_slow_are_found_out_while_it_proposes() -> None:
    planner = Planner(StepCosts({1: 0.05, 2: 0.051, 16: 0.08}), 8)
    dear = Machine(lambda places: 0.010 * places, draft_seconds=0.004)
    assert dear.run(planner, 0.7, kind=DRAFT_KIND) > 0.93


def test_no_step_is_taken_for_slower_than_one_with_more_places() -> None:
    costs = StepCosts({1: 1.2, 2: 0.7, 5: 1.1})
    assert (costs.plain(1), costs.wide(1, 2), costs.wide(1, 5)) == (0.7, 0.7, 1.1)


def test_the_first_step_of_a_size_says_nothing_about_the_next() -> None:
    costs = StepCosts(FLAT)
    for _ in range(2):
        costs.saw_plain(1, 0.010)
    costs.saw_wide(1, 2, 0.2)
    assert costs.wide(1, 2) == pytest.approx(FLAT[2])
    costs.saw_wide(1, 2, 0.012)
    assert costs.wide(1, 2) == pytest.approx(0.012)
