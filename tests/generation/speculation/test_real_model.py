"""Speculation on the real model: stop strings, guides and the prefix cache go with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from support.eager import eager
from support.engine_driver import GREEDY, Collected, Driver
from support.engines import loaded

from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine
from mlx_serving.actors.messages.values import Guidance, Sampling, Stopping, pack_ids
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.actors.models.tokenizer import TextTokenizer
from mlx_serving.config.schema import Generation, Speculation

pytestmark = pytest.mark.model

CODE = "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n    return a - b\n\n\ndef mul(a, b):\n    return"
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)


@pytest.fixture(scope="module")
def engines(smollm2: ModelRecord) -> Iterator[tuple[MlxEngine, MlxEngine]]:
    """Without speculation, and with whatever the text and a draft model, which is the model itself, propose."""
    plain = loaded(smollm2, Generation(max_rows=8, speculation=Speculation(mode="off")))
    fast = MlxEngine(smollm2, Generation(max_rows=8), TextTokenizer.load(smollm2.path), draft=smollm2)
    fast.load()
    yield plain, eager(fast)
    plain.close()
    fast.close()


@pytest.fixture(scope="module")
def tokenizer(smollm2: ModelRecord) -> TextTokenizer:
    return TextTokenizer.load(smollm2.path)


def run(engine: MlxEngine, prompt: list[int], sampling: Sampling, stopping: Stopping, **fields: Any) -> Collected:
    driver = Driver(engine)
    sequence = driver.submit(prompt, sampling, stopping, **fields)
    driver.run()
    said = driver.sequences[sequence]
    assert said.end is not None, said.error
    return said


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.8, top_p=0.9, seed=3)], ids=["greedy", "seeded"])
def test_answers_are_the_same_and_come_in_fewer_steps(
    engines: tuple[MlxEngine, MlxEngine], tokenizer: TextTokenizer, sampling: Sampling
) -> None:
    prompt, stopping = tokenizer.encode(CODE), Stopping(max_tokens=40, ignore_eos=True)
    plain, fast = (run(engine, prompt, sampling, stopping) for engine in engines)
    assert (fast.ids, fast.text) == (plain.ids, plain.text)
    assert fast.outputs < plain.outputs / 2
    assert fast.end is not None
    assert fast.end.drafts.accepted > 20
    again = run(engines[1], prompt, sampling, stopping)
    assert again.ids == plain.ids
    assert again.end is not None
    assert again.end.cached_tokens > 0


def test_a_stop_string_within_a_proposal_ends_the_answer_before_it(
    engines: tuple[MlxEngine, MlxEngine], tokenizer: TextTokenizer
) -> None:
    prompt = tokenizer.encode(CODE)
    whole = run(engines[0], prompt, GREEDY, Stopping(max_tokens=30, ignore_eos=True))
    stop = whole.text[12:16]
    stopping = Stopping(max_tokens=30, stop=(stop,), ignore_eos=True)
    plain = run(engines[0], prompt, GREEDY, stopping)
    fast = run(engines[1], prompt, GREEDY, stopping, prediction_ids=pack_ids(whole.ids))
    assert plain.end is not None
    assert fast.end is not None
    assert (fast.text, fast.ids) == (plain.text, plain.ids)
    assert (fast.end.reason, fast.end.matched) == ("stop", stop)
    assert attrs.astuple(fast.end)[1:3] == attrs.astuple(plain.end)[1:3]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.0, seed=4)], ids=["greedy", "seeded"])
def test_guided_answers_are_the_same_and_hold(
    engines: tuple[MlxEngine, MlxEngine], tokenizer: TextTokenizer, sampling: Sampling
) -> None:
    prompt = tokenizer.encode('A person as JSON, like {"name": "Ann", "age": 41}: ')
    stopping, guidance = Stopping(max_tokens=60), Guidance("json_schema", SCHEMA)
    plain, fast = (run(engine, prompt, sampling, stopping, guidance=guidance) for engine in engines)
    assert fast.text == plain.text
    assert set(json.loads(fast.text)) == {"name", "age"}
    assert fast.end is not None
    assert fast.end.drafts.accepted > 0
