"""The real model, held to something: rows beside it do not notice, and what it says is what was asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from support.engine_driver import GREEDY, Driver
from support.engines import loaded
from support.guidance_sources import PERSON

from mlx_serving.actors.messages.values import Guidance, Sampling, Stopping
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.actors.models.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine

pytestmark = pytest.mark.model

FREE = (("The capital of France is", GREEDY), ("Once upon a time", Sampling(seed=3, temperature=0.8)))
STOPPING = Stopping(max_tokens=14, ignore_eos=True)


@pytest.fixture(scope="module")
def engine(smollm2: ModelRecord) -> Iterator[MlxEngine]:
    engine = loaded(smollm2)
    yield engine
    engine.close()


def test_free_rows_say_the_same_beside_guided_ones(engine: MlxEngine, tokenizer: TextTokenizer) -> None:
    driver = Driver(engine)
    alone = [driver.submit(tokenizer.encode(prompt), sampling, STOPPING) for prompt, sampling in FREE]
    driver.run()
    beside = [driver.submit(tokenizer.encode(prompt), sampling, STOPPING) for prompt, sampling in FREE]
    question = tokenizer.apply_chat_template([{"role": "user", "content": "Who is Bob? He is 42. Answer in JSON."}])
    prompt = tokenizer.encode(question, add_special_tokens=False)
    person = Guidance("json_schema", json.dumps(PERSON))
    guided = [driver.submit(prompt, Sampling(seed=seed), Stopping(max_tokens=60), guidance=person) for seed in range(2)]
    driver.run()
    assert driver.ids(beside) == driver.ids(alone)
    for each in guided:
        assert json.loads(driver.sequences[each].text).keys() == {"name", "age"}
