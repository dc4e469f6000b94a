"""Speculative answers are, token for token, those of plain decoding."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from support.engine_driver import GREEDY, Driver
from support.tiny_models import make_tiny_model

from mlx_serving.actors.errors import ModelLoadFailed
from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine
from mlx_serving.actors.generation.speculation.costs import StepCosts
from mlx_serving.actors.messages.values import Sampling, Stopping, pack_ids
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.actors.models.tokenizer import TextTokenizer
from mlx_serving.config.schema import Generation, Speculation


@attrs.frozen
class Family:
    """A model and a smaller one of the same vocabulary."""

    target: ModelRecord
    draft: ModelRecord


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tmp_path_factory.mktemp("family")
    target = make_tiny_model(folder / "target", request.param)
    return Family(target, make_tiny_model(folder / "draft", "llama"))


def engine_of(record: ModelRecord, mode: str, draft: ModelRecord | None = None, longest: int = 6) -> MlxEngine:
    settings = Generation(max_rows=8, speculation=Speculation(mode=mode, max_tokens=longest))  # type: ignore[arg-type]
    engine = MlxEngine(record, settings, TextTokenizer.load(record.path), draft=draft)
    engine.load()
    return engine


def eager(engine: MlxEngine) -> MlxEngine:
    """It proposes whatever it can."""
    speculator = engine._speculator
    assert speculator is not None
    speculator._planner.costs = speculator._costs = _Free({1: 1.0, 2: 1.0})
    return engine


class _Free(StepCosts):
    """Costs that no measurement changes, and a draft model that costs nothing."""

    def saw_plain(self, rows: int, seconds: float) -> None: ...

    def saw_wide(self, rows: int, width: int, seconds: float) -> None: ...

    def saw_draft(self, rows: int, steps: int, seconds: float) -> None: ...

    def wide(self, rows: int, width: int) -> float:
        return self.plain(rows) / 10


@pytest.fixture
def plain(family: Family) -> Iterator[MlxEngine]:
    engine = engine_of(family.target, "off")
    yield engine
    engine.close()


PROMPTS = [[1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4], [9, 8, 7] * 9, [40, 41, 42], list(range(100, 160))]


def answers(engine: MlxEngine, sampling: Sampling, **fields: object) -> list[list[int]]:
    driver = Driver(engine)
    ids = [driver.submit(prompt, sampling, LONG, **fields) for prompt in PROMPTS]
    driver.run()
    assert all(driver.sequences[each].error is None for each in ids)
    return driver.ids(ids)


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_prompt_lookup_changes_no_token(family: Family, plain: MlxEngine, sampling: Sampling) -> None:
    engine = eager(engine_of(family.target, "lookup"))
    expected = answers(plain, sampling)
    assert answers(engine, sampling) == expected
    engine.close()


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_a_draft_model_changes_no_token(family: Family, plain: MlxEngine, sampling: Sampling) -> None:
    engine = eager(engine_of(family.target, "draft", family.draft))
    expected = answers(plain, sampling)
    assert answers(engine, sampling) == expected
    engine.close()


def test_a_model_that_drafts_for_itself_is_nearly_always_right(family: Family) -> None:
    engine = eager(engine_of(family.target, "draft", family.target))
    driver = Driver(engine)
    ids = [driver.submit(prompt, GREEDY, LONG) for prompt in PROMPTS]
    reports = driver.run()
    ends = [driver.sequences[each].end for each in ids]
    accepted = sum(end.drafts.accepted for end in ends if end is not None)
    rejected = sum(end.drafts.rejected for end in ends if end is not None)
    assert rejected <= 0.02 * accepted
    assert accepted > 0.7 * sum(len(driver.sequences[each].ids) for each in ids)
    assert sum(report.drafted for report in reports) == accepted + rejected
    assert sum(sum(report.accepted) for report in reports) == accepted
    engine.close()
