"""The distribution of what is said does not depend on what was proposed: chi-square against the exact one."""

from __future__ import annotations

import random

import attrs
import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from mlx_serving.actors.generation.mlx_engine.penalties import History
from mlx_serving.actors.generation.mlx_engine.sampling import DRAFTING, Draw, RowSampling, Sampler
from mlx_serving.actors.messages.values import Sampling

VOCAB = 12
ROWS = 6000
CRITICAL = 3.7
"""Standard deviations of a chi-square beyond which it would be chance once in about ten thousand times."""
PARAMETERS = {
    "plain": Sampling(),
    "cool": Sampling(temperature=0.6),
    "filtered": Sampling(temperature=1.2, top_k=7, top_p=0.85, min_p=0.03),
    "penalised": Sampling(temperature=0.9, frequency_penalty=0.8, presence_penalty=0.4, repetition_penalty=1.3),
    "biased": Sampling(logit_bias={3: 1.5, 4: -2.0}),
}
Floats = NDArray[np.float64]


@attrs.frozen
class Scene:
    """Logits of target and draft model at the first place, and at the second after each first token."""

    first: Floats
    second: Floats
    draft_first: Floats
    draft_second: Floats

    @classmethod
    def of(cls, seed: int) -> Scene:
        chance = np.random.default_rng(seed)
        first, second = chance.normal(0, 1.5, VOCAB), chance.normal(0, 1.5, (VOCAB, VOCAB))
        return cls(first, second, first + chance.normal(0, 1, VOCAB), second + chance.normal(0, 1, (VOCAB, VOCAB)))


def rows_of(parameters: Sampling, count: int = ROWS) -> list[RowSampling]:
    """Without a seed, but with the same keys every time."""
    chance = random.Random(8)
    return [RowSampling(parameters, chance.getrandbits(64), History([1, 5])) for _ in range(count)]


def said(sampler: Sampler, scene: Scene, drafts: mx.array, drafted: mx.array | None) -> list[tuple[int, int]]:
    """The first two tokens of every row; rows whose draft was rejected say the second by a plain draw."""
    second = mx.array(scene.second, dtype=mx.float32)
    first = mx.broadcast_to(mx.array(scene.first, dtype=mx.float32), (drafts.shape[0], VOCAB))
    logits = mx.stack([first, second[drafts[:, 0]]], axis=1)
    tokens = sampler.ahead(logits, drafts, drafted=drafted)
    accepted = (tokens[:, 0] == drafts[:, 0]).tolist()
    counts = [2 if each else 1 for each in accepted]  # type: ignore[union-attr]
    sampler.advance(tokens, counts)
    plain = sampler(second[tokens[:, 0]])
    pairs: list[list[int]] = mx.stack([tokens[:, 0], mx.where(mx.array(accepted), tokens[:, 1], plain)], 1).tolist()  # type: ignore[assignment]
    return [(one, two) for one, two in pairs]


def exact(parameters: Sampling, scene: Scene) -> Floats:
    """The joint probabilities of the first two tokens, by the sampler's own weights place by place."""
    joint = np.zeros((VOCAB, VOCAB))
    (row,) = rows_of(parameters, 1)
    first = _probabilities(row, scene.first)
    for token in range(VOCAB):
        row.history.restart([token])
        joint[token] = first[token] * _probabilities(row, scene.second[token])
    return joint


def _probabilities(row: RowSampling, logits: Floats) -> Floats:
    sampler = Sampler([row])
    adjusted = mx.array(logits[None], dtype=mx.float32)
    if sampler._adjustments is not None:
        adjusted = sampler._adjustments.apply(adjusted)
    weights = np.array(sampler._draw.weights(adjusted), dtype=np.float64)[0]
    probabilities: Floats = weights / weights.sum()
    return probabilities


def assert_follows(pairs: list[tuple[int, int]], joint: Floats) -> None:
    """Pearson's test; pairs too rare to expect five of are counted together."""
    observed = np.zeros((VOCAB, VOCAB))
    for one, two in pairs:
        observed[one, two] += 1
    expected = joint * len(pairs)
    assert observed[expected == 0].sum() == 0
    often = expected >= 5
    groups = [*zip(observed[often], expected[often], strict=True), (observed[~often].sum(), expected[~often].sum())]
    groups = [(o, e) for o, e in groups if e > 0]
    statistic = sum((o - e) ** 2 / e for o, e in groups)
    freedom = len(groups) - 1
    assert statistic < freedom + CRITICAL * (2 * freedom) ** 0.5, (statistic, freedom)


@pytest.mark.parametrize("parameters", PARAMETERS.values(), ids=PARAMETERS)
def test_proposals_from_the_text_leave_the_distribution_as_it_is(parameters: Sampling) -> None:
    scene = Scene.of(1)
    drafts = mx.full((ROWS, 1), int(scene.first.argmax()), dtype=mx.int32)
    assert_follows(said(Sampler(rows_of(parameters)), scene, drafts, None), exact(parameters, scene))


@pytest.mark.parametrize("parameters", PARAMETERS.values(), ids=PARAMETERS)
@pytest.mark.parametrize("is_alike", [True, False])
def test_proposals_drawn_by_a_draft_model_leave_the_distribution_as_it_is(parameters: Sampling, is_alike: bool) -> None:
    scene = Scene.of(2)
    rows = rows_of(parameters)
    assert all(row.rejects for row in rows)
    draft_logits = scene.draft_first if is_alike else -scene.first
    draw = Draw([parameters] * ROWS)
    logits = mx.broadcast_to(mx.array(draft_logits, dtype=mx.float32), (ROWS, VOCAB))
    weights = draw.weights(logits)
    drafts = draw(logits, [row.uniform(0, DRAFTING) for row in rows]).astype(mx.int32)[:, None]
    drafted = (weights / weights.sum(axis=-1, keepdims=True))[:, None]
    assert_follows(said(Sampler(rows), scene, drafts, drafted), exact(parameters, scene))


def test_a_draft_model_that_is_right_has_every_proposal_accepted() -> None:
    scene, rows = Scene.of(3), rows_of(Sampling())
    draw = Draw([Sampling()] * ROWS)
    logits = mx.broadcast_to(mx.array(scene.first, dtype=mx.float32), (ROWS, VOCAB))
    weights = draw.weights(logits)
    drafts = draw(logits, [row.uniform(0, DRAFTING) for row in rows]).astype(mx.int32)[:, None]
    pairs = said(Sampler(rows), scene, drafts, (weights / weights.sum(axis=-1, keepdims=True))[:, None])
    same = sum(one == draft for (one, _), draft in zip(pairs, drafts[:, 0].tolist(), strict=True))  # type: ignore[arg-type]
    assert same >= ROWS - 5


def test_streams_of_uniform_numbers_are_independent() -> None:
    rows = rows_of(Sampling(), 4000)
    columns = np.array([[row.uniform(place, stream) for place in range(2) for stream in range(3)] for row in rows])
    correlations = np.corrcoef(columns.T) - np.eye(6)
    assert abs(correlations).max() < 0.07
    assert abs(columns.mean(axis=0) - 0.5).max() < 0.03
