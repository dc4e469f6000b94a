"""The MLX engine on the real model: what it says is what mlx-lm says, whoever else is in the batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import pytest
from support.engine_driver import GREEDY, Collected, Driver
from support.engines import loaded
from support.stock import logprobs_along, stock_model
from support.subjects import greedy

from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine
from mlx_serving.actors.messages.values import Sampling, Stopping
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.actors.models.tokenizer import TextTokenizer

pytestmark = pytest.mark.model

TOKENS = 12
SENTENCES = [
    "The capital of France is",
    "Once upon a time",
    "def fibonacci(n):",
    "Water boils at",
    "The quick brown fox",
    "In 1969,",
    "My favourite food is",
    "List three colours:",
    "The meaning of life is",
    "A recipe for bread:",
]
PROMPTS = [
    *SENTENCES,
    *(" ".join(SENTENCES[:count]) for count in range(2, 10)),
    SENTENCES[3] * 9,
    SENTENCES[5] * 40,
]
NEIGHBOURS = [
    Sampling(temperature=0.8, top_p=0.9),
    Sampling(top_k=20, seed=4),
    Sampling(repetition_penalty=1.3, frequency_penalty=0.2, temperature=0),
    Sampling(min_p=0.1, logprobs=True, top_logprobs=2),
]


@pytest.fixture(scope="module")
def engine(smollm2: ModelRecord) -> Iterator[MlxEngine]:
    engine = loaded(smollm2)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def tokenizer(smollm2: ModelRecord) -> TextTokenizer:
    return TextTokenizer.load(smollm2.path)


@pytest.fixture(scope="module")
def reference(smollm2: ModelRecord) -> Any:
    """The same model by mlx-lm alone."""
    return stock_model(smollm2, is_dense=True)


@pytest.fixture(scope="module")
def said(engine: MlxEngine, tokenizer: TextTokenizer) -> list[Collected]:
    """Greedy answers to all prompts, eight at a time beside sampled ones."""
    driver = Driver(engine)
    ids = []
    for place, prompt in enumerate(PROMPTS):
        ids.append(driver.submit(tokenizer.encode(prompt), GREEDY, _stopping(TOKENS)))
        if place % 5 == 0:
            driver.submit(tokenizer.encode(prompt), NEIGHBOURS[place // 5], _stopping(TOKENS))
    assert max(report.rows for report in driver.run()) == 8
    return [driver.sequences[each] for each in ids]


def _stopping(tokens: int) -> Stopping:
    return Stopping(max_tokens=tokens, ignore_eos=True)


def test_what_it_says_is_what_mlx_lm_says_token_by_token(
    smollm2: ModelRecord, tokenizer: TextTokenizer, said: list[Collected]
) -> None:
    stored = stock_model(smollm2)
    for prompt, answer in zip(SENTENCES[:3], said, strict=False):
        assert answer.ids[:6] == greedy(stored, tokenizer.encode(prompt), 6)[0]


def test_twenty_prompts_eight_at_a_time_beside_sampled_ones_equal_mlx_lm(
    tokenizer: TextTokenizer, reference: Any, said: list[Collected]
) -> None:
    pairs = [(tokenizer.encode(prompt), answer.ids) for prompt, answer in zip(PROMPTS, said, strict=True)]
    # The last prompt is many times longer than the others.
    along = [*logprobs_along(reference, pairs[:-1]), *logprobs_along(reference, pairs[-1:])]
    for answer, logprobs in zip(said, along, strict=True):
        assert answer.ids == mx.argmax(logprobs, -1).tolist()
        assert len(answer.ids) == TOKENS
        assert answer.text == tokenizer.decode(answer.ids)


def test_pausing_changes_nothing(engine: MlxEngine, tokenizer: TextTokenizer, said: list[Collected]) -> None:
    driver = Driver(engine)
    ids = [driver.submit(tokenizer.encode(PROMPTS[place]), GREEDY, _stopping(TOKENS)) for place in range(3)]
    driver.run_until(ids[0], 4)
    engine.pause(ids[0])
    driver.run_until(ids[1], 10)
    engine.resume(ids[0])
    driver.run()
    assert driver.ids(ids) == [answer.ids for answer in said[:3]]


def test_log_probabilities_equal_those_of_mlx_lm(engine: MlxEngine, tokenizer: TextTokenizer, reference: Any) -> None:
    driver = Driver(engine)
    sampling = Sampling(temperature=0, logprobs=True, top_logprobs=5)
    asked = driver.submit(tokenizer.encode(PROMPTS[0]), sampling, _stopping(6))
    driver.submit(tokenizer.encode(PROMPTS[1]), GREEDY, _stopping(6))
    driver.run()
    answer = driver.sequences[asked]
    [along] = logprobs_along(reference, [(tokenizer.encode(PROMPTS[0]), answer.ids)])
    for token_id, expected, given in zip(answer.ids, along, answer.logprobs, strict=True):
        best = mx.argsort(-expected)[:5].tolist()
        assert given.token_id == token_id
        assert given.token == tokenizer.decode([token_id])
        assert given.logprob == pytest.approx(expected[token_id].item(), abs=1e-3)
        assert [each[0] for each in given.top] == best
        assert [each[2] for each in given.top] == pytest.approx(expected[mx.array(best)].tolist(), abs=1e-3)


def test_a_stop_string_across_token_borders_is_cut_out(
    engine: MlxEngine, tokenizer: TextTokenizer, said: list[Collected]
) -> None:
    whole = said[1].text
    stop = whole[9:14]
    driver = Driver(engine)
    stopped = driver.submit(
        tokenizer.encode(PROMPTS[1]), stopping=Stopping(max_tokens=TOKENS, stop=(stop, "never said"))
    )
    driver.run()
    end = driver.sequences[stopped].end
    assert end is not None
    assert (driver.sequences[stopped].text, end.reason, end.matched) == (
        whole[: whole.index(stop)],
        "stop",
        stop,
    )
    assert end.completion_tokens < TOKENS


def test_a_seeded_answer_is_the_same_alone_and_in_a_batch(engine: MlxEngine, tokenizer: TextTokenizer) -> None:
    driver = Driver(engine)
    sampling = Sampling(seed=42, temperature=0.9, top_p=0.95)
    prompt = tokenizer.encode(PROMPTS[1])
    alone = driver.submit(prompt, sampling, _stopping(8))
    driver.run()
    together = driver.submit(prompt, sampling, _stopping(8))
    driver.submit(prompt, Sampling(), _stopping(8))
    other_choice = driver.submit(prompt, sampling, _stopping(8), index=1)
    driver.run()
    assert driver.sequences[alone].ids == driver.sequences[together].ids
    assert driver.sequences[alone].ids != driver.sequences[other_choice].ids
