"""A row that fails in the MLX engine fails by itself, and the engine goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest
from support.engine_driver import Driver, replace_model
from support.engines import mlx_lm_greedy

from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine
from mlx_serving.actors.generation.mlx_engine.kv_slabs import SlabGroup
from mlx_serving.actors.messages.values import Sampling

PROMPTS = [list(text.encode()) for text in ("a", "hello", "the cat sat", "1 2 3 4 5 6 7", "zz", "so it goes" * 4)]
MARKED = 200
"""A token of the vocabulary that the tests' faulty models stumble over."""


@pytest.fixture
def expected(tiny: MlxEngine) -> list[list[int]]:
    return [mlx_lm_greedy(tiny, prompt, 8)[0] for prompt in PROMPTS]


class Faulty:
    """A model whose output is changed in passes of one token a row, as decoding does."""

    def __init__(self, model: Any, act: Callable[[mx.array, mx.array], mx.array]) -> None:
        self._model = model
        self._act = act

    def __call__(self, inputs: mx.array, cache: Any) -> mx.array:
        logits: mx.array = self._model(inputs, cache=cache)
        return self._act(inputs, logits) if inputs.shape[1] == 1 else logits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _break(engine: MlxEngine, act: Callable[[mx.array, mx.array], mx.array]) -> None:
    replace_model(engine, Faulty(engine._model, act))


def _forced(token_id: int) -> Sampling:
    return Sampling(temperature=0, logit_bias={token_id: 100.0})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_whose_logits_are_not_finite_fails_alone(
    tiny: MlxEngine, expected: list[list[int]], value: float
) -> None:
    _break(tiny, lambda inputs, logits: mx.where((inputs == MARKED)[..., None], value, logits))
    driver = Driver(tiny)
    ids = [driver.submit(PROMPTS[1]), driver.submit(PROMPTS[2], _forced(MARKED)), driver.submit(PROMPTS[3])]
    driver.run()
    failed = driver.sequences[ids[1]]
    assert failed.error is not None
    assert failed.error.code == "generation_failed"
    assert failed.ids == [MARKED]
    assert driver.ids([ids[0], ids[2]]) == [expected[1], expected[3]]


def _raise(inputs: mx.array, logits: mx.array) -> mx.array:
    if mx.any(inputs == MARKED).item():
        raise RuntimeError("out of order")
    return logits


def test_a_batch_that_fails_costs_only_the_row_at_fault(tiny: MlxEngine, expected: list[list[int]]) -> None:
    _break(tiny, _raise)
    driver = Driver(tiny)
    ids = [driver.submit(PROMPTS[1]), driver.submit(PROMPTS[3])]
    driver.run_until(ids[0], 3)
    guilty = driver.submit(PROMPTS[2], _forced(MARKED))
    sampled = driver.submit(PROMPTS[2], Sampling(seed=3, frequency_penalty=0.5))
    driver.run()
    error = driver.sequences[guilty].error
    assert error is not None
    assert "out of order" in error.message
    assert driver.ids(ids) == [expected[1], expected[3]]
    alone = driver.submit(PROMPTS[2], Sampling(seed=3, frequency_penalty=0.5))
    driver.run()
    assert driver.sequences[sampled].ids == driver.sequences[alone].ids


def test_a_failure_while_rows_join_costs_nobody_an_answer(
    tiny: MlxEngine, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    add, failures = SlabGroup.add, iter([RuntimeError("out of memory")])

    def failing_once(group: SlabGroup, caches: Any, length: int) -> None:
        for failure in failures:
            raise failure
        add(group, caches, length)

    driver = Driver(tiny)
    running = driver.submit(PROMPTS[1])
    driver.run_until(running, 3)
    monkeypatch.setattr(SlabGroup, "add", failing_once)
    joining = driver.submit(PROMPTS[3])
    driver.run()
    assert driver.ids([running, joining]) == [expected[1], expected[3]]


def test_a_lone_row_that_fails_leaves_the_engine_working(tiny: MlxEngine, expected: list[list[int]]) -> None:
    _break(tiny, _raise)
    driver = Driver(tiny)
    guilty = driver.submit(PROMPTS[2], _forced(MARKED))
    driver.run()
    later = driver.submit(PROMPTS[1])
    driver.run()
    assert driver.sequences[guilty].error is not None
    assert driver.sequences[later].ids == expected[1]


def test_a_prompt_that_fails_leaves_the_others_alone(tiny: MlxEngine, expected: list[list[int]]) -> None:
    whole = tiny._model

    def model(inputs: mx.array, cache: Any) -> Any:
        if mx.any(mx.sum(inputs == 65, axis=-1) == 10).item():
            raise RuntimeError("no such prompt")
        return whole(inputs, cache=cache)

    model.make_cache = whole.make_cache  # type: ignore[attr-defined]
    replace_model(tiny, model)
    driver = Driver(tiny)
    ids = [driver.submit(PROMPTS[1]), driver.submit([65] * 11), driver.submit(PROMPTS[3])]
    driver.run()
    assert driver.sequences[ids[1]].error is not None
    assert driver.ids([ids[0], ids[2]]) == [expected[1], expected[3]]
