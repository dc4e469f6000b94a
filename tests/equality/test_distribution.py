"""Sampled answers follow the model's distribution exactly, whichever way they are made.

Thousands of short answers are drawn in one batch, each with a seed of its own, and held against the exact
probability of every answer by a chi-square test. The seeds are fixed: the outcome never varies.
"""

from __future__ import annotations

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

from mlx_serving.actors.messages.values import Sampling, Stopping
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


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_sampled_answers_follow_the_exact_distribution(
    record: ModelRecord, draft: ModelRecord, logits_after: Callable[[Answer], Floats], case: Case
) -> None:
    settings = Generation(**case.settings)
    engine = loaded(record, settings, draft if settings.speculation.mode == "draft" else None)
    if settings.speculation.mode != "off":
        eager(engine)
    driver = Driver(engine)
    asked: dict[str, list[int]] = {name: [] for name in case.samplings}
    for seed in range(DRAWS):
        for name, sampling in case.samplings.items():
            stopping = Stopping(case.tokens, ignore_eos=True)
            asked[name].append(driver.submit(PROMPT, attrs.evolve(sampling, seed=seed), stopping))
    drafted = sum(report.drafted for report in driver.run())
    engine.close()
    assert (drafted > DRAWS) == (settings.speculation.mode != "off")
    for name, ids in asked.items():
        exact = reference_sampler.answers(logits_after, case.samplings[name], PROMPT, case.tokens)
        assert surprise([tuple(driver.sequences[each].ids) for each in ids], exact) < MOST_SURPRISE, name


def test_the_test_notices_a_distribution_that_is_slightly_off(logits_after: Callable[[Answer], Floats]) -> None:
    exact = reference_sampler.answers(logits_after, SAMPLINGS["top-k"], PROMPT, 3)
    draw = np.random.default_rng(5)
    names, shares = list(exact), np.array(list(exact.values()))
    honest = draw.choice(len(names), DRAWS, p=shares / shares.sum())
    skewed = shares**1.5
    wrong = draw.choice(len(names), DRAWS, p=skewed / skewed.sum())
    assert surprise([names[each] for each in honest], exact) < MOST_SURPRISE
    assert surprise([names[each] for each in wrong], exact) > MOST_SURPRISE
