"""Sampled answers follow the model's distribution exactly, whichever way they are made.

Thousands of short answers are drawn in one batch, and held against the exact probability of every answer by a
chi-square test. Each has a seed of its own, so that it replays the plain draw, or none, so that what a draft model
proposes to it is accepted or rejected by chance. Seeds, and keys of answers without one, are fixed: the outcome never
varies.
"""

from __future__ import annotations

import random
import secrets
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load_model
from support import reference_sampler
from support.eager import eager
from support.engine_driver import Driver
from support.engines import loaded
from support.reference_sampler import Answer, Floats, surprise
from support.tiny_models import make_tiny_model

from mlx_serving.actors.generation.mlx_engine import draft_model, rejection
from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine
from mlx_serving.actors.messages.values import Sampling, Stopping
from mlx_serving.actors.models.metadata import describe_folder
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.config.schema import Generation, Speculation

PROMPT = list(b"one two one two one")
DRAWS = 1200
MOST_SURPRISE = 3.3
"""Standard deviations; by chance one test in two thousand would go beyond."""
SAMPLINGS = {
    "top-k": Sampling(top_k=4),
    "top-p and min-p": Sampling(temperature=0.8, top_p=0.7, min_p=0.1),
    "penalties and bias": Sampling(
        top_k=5, repetition_penalty=1.3, frequency_penalty=0.8, presence_penalty=0.4, logit_bias={65: 4.0}
    ),
}
FEW = {"one of two": Sampling(top_k=2, temperature=1.5)}


@attrs.frozen
class Case:
    """A way to decode that no distribution may depend on, and answers of so many tokens to draw by it."""

    settings: dict[str, Any]
    samplings: dict[str, Sampling] = SAMPLINGS
    tokens: int = 3


CASES = {
    "plain": Case({"max_rows": 128, "max_prefills": 32, "speculation": Speculation(mode="off")}),
    "speculating from the text": Case(
        {"max_rows": 128, "max_prefills": 32, "speculation": Speculation(mode="lookup", max_tokens=2)}
    ),
    # A draft model follows a row only once the row decodes, so answers must be longer.
    "drafted by another model": Case(
        {"max_rows": 24, "speculation": Speculation(mode="draft", max_tokens=3)}, FEW, tokens=6
    ),
}


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> ModelRecord:
    folder: Path = tmp_path_factory.mktemp("models") / "llama"
    return make_tiny_model(folder, "llama")


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> ModelRecord:
    folder: Path = tmp_path_factory.mktemp("models") / "draft"
    return make_tiny_model(folder, "llama", seed=8)


@pytest.fixture(scope="module")
def logits_after(record: ModelRecord) -> Callable[[Answer], Floats]:
    """mlx-lm's logits [vocabulary] after the prompt and an answer."""
    model, _ = load_model(record.path)

    @cache
    def logits(answer: Answer) -> Floats:
        last = model(mx.array([[*PROMPT, *answer]]))[0, -1].astype(mx.float32)
        return np.array(last, dtype=np.float64)

    return logits


@attrs.frozen
class Drawn:
    """The answers of each way to sample, and what became of the tokens that a draft model proposed for them."""

    answers: dict[str, list[Answer]]
    accepted: int
    rejected: int
    drafted: int
    """Of all sources."""


def drawn(engine: MlxEngine, case: Case, is_seeded: bool = True) -> Drawn:
    driver = Driver(engine)
    asked: dict[str, list[int]] = {name: [] for name in case.samplings}
    stopping = Stopping(case.tokens, ignore_eos=True)
    for seed in range(DRAWS):
        for name, chosen in case.samplings.items():
            each = attrs.evolve(chosen, seed=seed if is_seeded else None)
            asked[name].append(driver.submit(PROMPT, each, stopping))
    drafted = sum(report.drafted for report in driver.run())
    engine.close()
    counts = [collected.end.drafts for collected in driver.sequences.values() if collected.end is not None]
    assert len(counts) == DRAWS * len(case.samplings)
    answers = {name: [tuple(driver.sequences[each].ids) for each in ids] for name, ids in asked.items()}
    return Drawn(answers, sum(each.accepted for each in counts), sum(each.rejected for each in counts), drafted)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_sampled_answers_follow_the_exact_distribution(
    record: ModelRecord, draft: ModelRecord, logits_after: Callable[[Answer], Floats], case: Case
) -> None:
    settings = Generation(**case.settings)
    engine = loaded(record, settings, draft if settings.speculation.mode == "draft" else None)
    if settings.speculation.mode != "off":
        eager(engine)
    found = drawn(engine, case)
    assert (found.drafted > DRAWS) == (settings.speculation.mode != "off")
    for name, answers in found.answers.items():
        exact = reference_sampler.answers(logits_after, case.samplings[name], PROMPT, case.tokens)
        assert surprise(answers, exact) < MOST_SURPRISE, name


@pytest.fixture(scope="module")
def alike(record: ModelRecord, tmp_path_factory: pytest.TempPathFactory) -> ModelRecord:
    """The model with other weights, but not by much: the same tokens are likely, with other probabilities."""
    folder: Path = tmp_path_factory.mktemp("models") / "alike"
    shutil.copytree(record.path, folder)
    weights: Any = mx.load(str(folder / "model.safetensors"))
    mx.random.seed(1)
    moved = {name: each + 0.1 * mx.std(each) * mx.random.normal(each.shape) for name, each in weights.items()}
    mx.eval(moved)  # before the file is written that they are read from
    mx.save_safetensors(str(folder / "model.safetensors"), moved, {"format": "mlx"})
    return describe_folder(folder, "alike", "random weights")


@pytest.fixture
def same_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows without a seed get the same keys in every run."""
    monkeypatch.setattr(secrets, "randbits", random.Random(8).getrandbits)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many places were judged by chance, call by call."""
    counts: list[int] = []
    judge = rejection.judged

    def noted(weights: mx.array, drafts: mx.array, *rest: mx.array) -> mx.array:
        counts.append(drafts.size)
        return judge(weights, drafts, *rest)

    monkeypatch.setattr(rejection, "judged", noted)
    return counts


UNSEEDED = Case(
    {"max_rows": 24, "speculation": Speculation(mode="draft", max_tokens=3)},
    {"one of two": Sampling(top_k=2, temperature=0.7)},
    tokens=6,
)


def surprise_of_unseeded(record: ModelRecord, alike: ModelRecord, logits_after: Callable[[Answer], Floats]) -> float:
    """Of answers without a seed, for which many proposals were accepted and many rejected."""
    found = drawn(eager(loaded(record, Generation(**UNSEEDED.settings), alike)), UNSEEDED, is_seeded=False)
    assert found.accepted > DRAWS // 2
    assert found.rejected > DRAWS // 2
    ((name, answers),) = found.answers.items()
    chosen = UNSEEDED.samplings[name]
    return surprise(answers, reference_sampler.answers(logits_after, chosen, PROMPT, UNSEEDED.tokens))


@pytest.mark.usefixtures("same_keys")
def test_answers_without_a_seed_follow_the_exact_distribution(
    record: ModelRecord, alike: ModelRecord, logits_after: Callable[[Answer], Floats], judged: list[int]
) -> None:
    assert surprise_of_unseeded(record, alike, logits_after) < MOST_SURPRISE
    assert sum(judged) > DRAWS


@pytest.mark.usefixtures("same_keys")
def test_the_test_notices_what_a_draft_model_did_not_draw_with(
    record: ModelRecord, alike: ModelRecord, logits_after: Callable[[Answer], Floats], monkeypatch: pytest.MonkeyPatch
) -> None:
    true = draft_model._Drawing.probabilities

    def steeper(drawing: Any, places: Any) -> mx.array:
        """As if drawn at half the temperature."""
        drawn_with = true(drawing, places)
        assert drawn_with is not None
        return drawn_with**2 / (drawn_with**2).sum(axis=-1, keepdims=True)

    monkeypatch.setattr(draft_model._Drawing, "probabilities", steeper)
    assert surprise_of_unseeded(record, alike, logits_after) > MOST_SURPRISE


def test_the_test_notices_a_distribution_that_is_slightly_off(logits_after: Callable[[Answer], Floats]) -> None:
    exact = reference_sampler.answers(logits_after, SAMPLINGS["top-k"], PROMPT, 3)
    draw = np.random.default_rng(5)
    names, shares = list(exact), np.array(list(exact.values()))
    honest = draw.choice(len(names), DRAWS, p=shares / shares.sum())
    skewed = shares**1.5
    wrong = draw.choice(len(names), DRAWS, p=skewed / skewed.sum())
    assert surprise([names[each] for each in honest], exact) < MOST_SURPRISE
    assert surprise([names[each] for each in wrong], exact) > MOST_SURPRISE
