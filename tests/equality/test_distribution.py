"""Sampled answers follow the model's distribution exactly, whichever way they are made.

Thousands of short answers are drawn in one batch, each with a seed of its own, and held against the exact
probability of every answer by a chi-square test. The seeds are fixed: the outcome never varies.
"""

from __future__ import annotations

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
TOKENS = 3
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
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"speculation": Speculation(mode="off")},
    "speculating from the text": {"speculation": Speculation(mode="lookup", max_tokens=2)},
    "drafted by another model": {"speculation": Speculation(mode="draft", max_tokens=2)},
}
"""Ways to decode that no distribution may depend on."""


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> ModelRecord:
    folder: Path = tmp_path_factory.mktemp("models") / "llama"
    return make_tiny_model(folder, "llama")


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> ModelRecord:
    folder: Path = tmp_path_factory.mktemp("models") / "draft"
    return make_tiny_model(folder, "llama", seed=8)


@pytest.fixture(scope="module")
def expected(record: ModelRecord) -> dict[str, dict[Answer, float]]:
    """Each sampling's exact probabilities of answers, from mlx-lm's logits."""
    model, _ = load_model(record.path)

    @cache
    def logits_after(answer: Answer) -> Floats:
        logits = model(mx.array([[*PROMPT, *answer]]))[0, -1].astype(mx.float32)
        return np.array(logits, dtype=np.float64)

    return {
        name: reference_sampler.answers(logits_after, sampling, PROMPT, TOKENS) for name, sampling in SAMPLINGS.items()
    }


@pytest.mark.parametrize("way", SETTINGS)
def test_sampled_answers_follow_the_exact_distribution(
    record: ModelRecord, draft: ModelRecord, expected: dict[str, dict[Answer, float]], way: str
) -> None:
    settings = Generation(max_rows=128, max_prefills=32, **SETTINGS[way])
    engine = loaded(record, settings, draft if settings.speculation.mode == "draft" else None)
    speculates = settings.speculation.mode != "off"
    if speculates:
        eager(engine)
    driver = Driver(engine)
    asked: dict[str, list[int]] = {name: [] for name in SAMPLINGS}
    for seed in range(DRAWS):
        for name, sampling in SAMPLINGS.items():
            asked[name].append(driver.submit(PROMPT, _seeded(sampling, seed), Stopping(TOKENS, ignore_eos=True)))
    drafted = sum(report.drafted for report in driver.run())
    engine.close()
    assert (drafted > DRAWS // 4) == speculates
    for name, ids in asked.items():
        drawn = [tuple(driver.sequences[each].ids) for each in ids]
        assert len(set(drawn)) > 10, name
        assert surprise(drawn, expected[name]) < MOST_SURPRISE, name


def _seeded(sampling: Sampling, seed: int) -> Sampling:
    return attrs.evolve(sampling, seed=seed)


def test_the_test_notices_a_distribution_that_is_slightly_off(expected: dict[str, dict[Answer, float]]) -> None:
    exact = expected["top-k"]
    draw = np.random.default_rng(5)
    names, shares = list(exact), np.array(list(exact.values()))
    honest = draw.choice(len(names), DRAWS, p=shares / shares.sum())
    skewed = shares**1.5
    wrong = draw.choice(len(names), DRAWS, p=skewed / skewed.sum())
    assert surprise([names[each] for each in honest], exact) < MOST_SURPRISE
    assert surprise([names[each] for each in wrong], exact) > MOST_SURPRISE
