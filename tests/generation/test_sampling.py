"""The sampler against NumPy and against the distributions it should follow, by MLX's operations and natively."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import attrs
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support import instructions

from mlx_serving.actors.generation.mlx_engine import draw_kernel
from mlx_serving.actors.generation.mlx_engine import sampling as sampling_module
from mlx_serving.actors.generation.mlx_engine.sampling import Draw, RowSampling, Sampler
from mlx_serving.actors.messages.values import Sampling

Array = NDArray[Any]
DRAWS = 20_000
RNG = np.random.default_rng(5)
LOGITS = RNG.normal(size=24).astype(np.float32) * 1.5


@pytest.fixture(scope="module", params=["operations", *instructions.SETS], autouse=True)
def _way(request: pytest.FixtureRequest) -> Iterator[None]:
    """How tokens are drawn in this process: by operations, or by kernels with these instructions."""
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        if request.param != "operations":
            stack.enter_context(instructions.using(request.param))
        patch.setattr(draw_kernel, "_way", "operations" if request.param == "operations" else "cpu")
        yield


def expected_distribution(logits: Array, sampling: Sampling) -> Array:
    """Probabilities after temperature, top-k, top-p and min-p, the long way."""
    scaled = logits.astype(np.float64) / sampling.temperature
    order = np.argsort(-scaled, kind="stable")
    weights: Array = np.exp(scaled[order] - scaled[order[0]])
    if sampling.top_k:
        weights[sampling.top_k :] = 0
    before = np.cumsum(weights) - weights
    weights[before >= sampling.top_p * weights.sum()] = 0
    weights[weights < sampling.min_p] = 0
    probabilities: Array = np.zeros_like(weights)
    probabilities[order] = weights / weights.sum()
    return probabilities


def drawn(logits: Array, sampling: Sampling, count: int) -> Array:
    """Tokens of `count` rows with these logits, each with a seed of its own."""
    rows = [RowSampling.begin(_seeded(sampling, seed), 0, [0]) for seed in range(count)]
    tokens = Sampler(rows)(mx.broadcast_to(mx.array(logits), (count, len(logits))))
    return np.array(tokens)


def _seeded(sampling: Sampling, seed: int) -> Sampling:
    return attrs.evolve(sampling, seed=seed)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.5),
        Sampling(temperature=1.7),
        Sampling(top_k=5),
        Sampling(top_p=0.7),
        Sampling(min_p=0.2),
        Sampling(temperature=1.3, top_k=9, top_p=0.8, min_p=0.05),
    ],
    ids=str,
)
def test_draws_follow_the_distribution(sampling: Sampling) -> None:
    expected = expected_distribution(LOGITS, sampling)
    counts = np.bincount(drawn(LOGITS, sampling, DRAWS), minlength=len(LOGITS))
    possible = expected > 0
    assert counts[~possible].sum() == 0
    chi_square = ((counts - expected * DRAWS)[possible] ** 2 / (expected * DRAWS)[possible]).sum()
    freedom = possible.sum() - 1
    # Above this a chi-square of so many degrees of freedom lies once in some ten thousand runs.
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom) + 4


def test_a_large_vocabulary_is_cut_without_sorting_it_and_gives_the_same() -> None:
    logits = RNG.normal(size=5000).astype(np.float32) * 3
    sampling = Sampling(top_k=4)
    counts = np.bincount(drawn(logits, sampling, 500), minlength=5000)
    assert set(np.flatnonzero(counts)) == set(np.argsort(-logits)[:4])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.builds(
            Sampling,
            temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
            top_k=st.sampled_from([0, 1, 3, 2000]),
            top_p=st.sampled_from([0.1, 0.9, 1.0]),
            min_p=st.sampled_from([0.0, 0.1]),
            seed=st.integers(-5, 2**63),
            repetition_penalty=st.sampled_from([1.0, 1.3]),
            presence_penalty=st.sampled_from([0.0, 0.5]),
            frequency_penalty=st.sampled_from([0.0, 0.2]),
            logit_bias=st.sampled_from([{}, {3: 2.0}]),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_a_row_draws_the_same_whatever_its_neighbours(parameters: list[Sampling]) -> None:
    logits = mx.array(np.random.default_rng(1).normal(size=(len(parameters), 1500)).astype(np.float32) * 2)
    together = Sampler([RowSampling.begin(each, 0, [1, 2, 3]) for each in parameters])
    alone = [Sampler([RowSampling.begin(each, 0, [1, 2, 3])]) for each in parameters]
    for _ in range(3):
        tokens = together(logits).tolist()
        assert tokens == [sampler(logits[i : i + 1]).item() for i, sampler in enumerate(alone)]


def test_greedy_takes_the_largest_and_top_1_too() -> None:
    for sampling in (Sampling(temperature=0), Sampling(top_k=1), Sampling(top_p=1e-6), Sampling(min_p=1.0)):
        assert set(drawn(LOGITS, sampling, 50)) == {int(np.argmax(LOGITS))}


def test_a_row_without_a_seed_is_not_like_the_next() -> None:
    rows = [RowSampling.begin(Sampling(), 0, [0]) for _ in range(200)]
    tokens: Any = Sampler(rows)(mx.zeros((200, 1000))).tolist()
    assert len(set(tokens)) > 100


def test_positions_and_choices_draw_differently() -> None:
    flat = mx.zeros((2, 10_000))
    rows = [RowSampling.begin(Sampling(seed=1), choice, [0]) for choice in (0, 1)]
    sampler = Sampler(rows)
    tokens = [token for _ in range(10) for token in np.array(sampler(flat))]
    assert len(set(tokens)) == 20


def _penalised(logits: Array, prompt: list[int], answer: list[int], sampling: Sampling) -> Array:
    adjusted = logits.astype(np.float64).copy()
    for token_id, bias in sampling.logit_bias.items():
        adjusted[token_id] += bias
    for token_id in {*prompt, *answer}:
        value = adjusted[token_id]
        penalty = sampling.repetition_penalty
        adjusted[token_id] = value / penalty if value > 0 else value * penalty
    for token_id in answer:
        adjusted[token_id] -= sampling.frequency_penalty
    for token_id in set(answer):
        adjusted[token_id] -= sampling.presence_penalty
    return adjusted


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0, repetition_penalty=1.5),
        Sampling(temperature=0, presence_penalty=0.8),
        Sampling(temperature=0, frequency_penalty=0.3),
        Sampling(temperature=0, logit_bias={4: 3.0, 9: -100.0}),
        Sampling(
            temperature=0,
            repetition_penalty=1.2,
            presence_penalty=0.3,
            frequency_penalty=0.4,
            logit_bias={7: 1.5},
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_restarted", [False, True])
def test_penalties_are_those_of_a_plain_computation(sampling: Sampling, is_restarted: bool) -> None:
    prompt = [int(np.argmax(LOGITS)), 5]
    answer: list[int] = []
    row = RowSampling.begin(sampling, 0, prompt)
    plain = RowSampling.begin(Sampling(temperature=0), 0, prompt)
    sampler = Sampler([plain, row])
    for position in range(30):
        token = int(np.array(sampler(mx.array(np.stack([LOGITS, LOGITS]))))[1])
        assert token == int(np.argmax(_penalised(LOGITS, prompt, answer, sampling)))
        answer.append(token)
        if position % 7 == 6:
            sampler.release()
            if is_restarted:
                row.rewind(answer)
            sampler = Sampler([row] if position % 2 else [plain, row])
            if position % 2:
                sampler.release()
                sampler = Sampler([plain, row])


def test_the_kernels_numbers_are_made_once_where_nothing_is_random() -> None:
    greedy = Draw([Sampling(temperature=0), Sampling(temperature=0, top_p=0.5)])
    assert greedy._numbers(()) is greedy._numbers(())
    assert greedy._numbers(()).tolist() == [[0.0, 1.0, 0.0, 0.0], [0.0, 0.5, 0.0, 0.0]]
    mixed = Draw([Sampling(temperature=0), Sampling(temperature=0.5, min_p=0.25)])
    assert mixed._numbers([0.5, 0.75]).tolist() == [[0.0, 1.0, 0.0, 0.5], [2.0, 1.0, 0.25, 0.75]]
    assert mixed._numbers([0.0, 0.125])[1].tolist() == [2.0, 1.0, 0.25, 0.125]


def test_numbers_of_many_rows_are_those_of_each() -> None:
    rows = [RowSampling.begin(Sampling(seed=seed), seed % 3, [1]) for seed in range(40)]
    for place, row in enumerate(rows):
        row.position = place * place * 1000
    keys = np.array([row.key for row in rows], dtype=np.uint64)
    assert list(sampling_module._uniform(rows, keys)) == [row.uniform() for row in rows]
    assert sampling_module._uniform(rows[:3], keys[:3]) == [row.uniform() for row in rows[:3]]
