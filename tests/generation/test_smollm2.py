"""The MLX engine on the real model: what it says is what mlx-lm says, whoever else is in the batch."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import pytest
from mlx_lm.utils import dequantize_model
from support.engine_driver import GREEDY, Driver, replace_model
from support.engines import loaded, mlx_lm_greedy

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
Reference = tuple[list[int], list[mx.array]]


@pytest.fixture(scope="module")
def quantized(smollm2: ModelRecord) -> Iterator[MlxEngine]:
    engine = loaded(smollm2)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def engine(smollm2: ModelRecord) -> Iterator[MlxEngine]:
    """With the same weights unpacked, as MLX's CPU back end takes prompts in ten times faster then."""
    engine = loaded(smollm2)
    replace_model(engine, dequantize_model(engine._model))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def tokenizer(smollm2: ModelRecord) -> TextTokenizer:
    return TextTokenizer.load(smollm2.path)


@pytest.fixture(scope="module")
def references(engine: MlxEngine, tokenizer: TextTokenizer) -> list[Reference]:
    """mlx-lm's greedy answers to all prompts."""
    return [mlx_lm_greedy(engine, tokenizer.encode(prompt), TOKENS) for prompt in PROMPTS]


def _stopping(tokens: int) -> Stopping:
    return Stopping(max_tokens=tokens, ignore_eos=True)


def test_the_model_as_it_is_stored_says_what_mlx_lm_says(quantized: MlxEngine, tokenizer: TextTokenizer) -> None:
    driver = Driver(quantized)
    prompts = [tokenizer.encode(prompt) for prompt in SENTENCES[:3]]
    ids = [driver.submit(prompt, stopping=_stopping(6)) for prompt in prompts]
    driver.run()
    assert driver.ids(ids) == [mlx_lm_greedy(quantized, prompt, 6)[0] for prompt in prompts]


def test_twenty_prompts_eight_at_a_time_beside_sampled_ones_equal_mlx_lm(
    engine: MlxEngine, tokenizer: TextTokenizer, references: list[Reference]
) -> None:
    neighbours = [
        Sampling(temperature=0.8, top_p=0.9),
        Sampling(top_k=20, seed=4),
        Sampling(repetition_penalty=1.3, frequency_penalty=0.2, temperature=0),
        Sampling(min_p=0.1, logprobs=True, top_logprobs=2),
    ]
    driver = Driver(engine)
    ids = []
    for place, prompt in enumerate(PROMPTS):
        ids.append(driver.submit(tokenizer.encode(prompt), GREEDY, _stopping(TOKENS)))
        if place % 5 == 0:
            driver.submit(tokenizer.encode(prompt), neighbours[place // 5], _stopping(TOKENS))
    reports = driver.run()
    assert max(report.rows for report in reports) == 8
    assert driver.ids(ids) == [reference[0] for reference in references]
    for each in ids:
        assert driver.sequences[each].text == tokenizer.decode(driver.sequences[each].ids)


def test_pausing_changes_nothing(engine: MlxEngine, tokenizer: TextTokenizer, references: list[Reference]) -> None:
    driver = Driver(engine)
    ids = [driver.submit(tokenizer.encode(PROMPTS[place]), GREEDY, _stopping(TOKENS)) for place in range(3)]
    driver.run_until(ids[0], 4)
    engine.pause(ids[0])
    driver.run_until(ids[1], 10)
    engine.resume(ids[0])
    driver.run()
    assert driver.ids(ids) == [references[place][0] for place in range(3)]


def test_log_probabilities_equal_those_of_mlx_lm(
    engine: MlxEngine, tokenizer: TextTokenizer, references: list[Reference]
) -> None:
    driver = Driver(engine)
    sampling = Sampling(temperature=0, logprobs=True, top_logprobs=5)
    asked = driver.submit(tokenizer.encode(PROMPTS[0]), sampling, _stopping(6))
    driver.submit(tokenizer.encode(PROMPTS[1]), GREEDY, _stopping(6))
    driver.run()
    ids, logprobs = references[0]
    for token_id, expected, given in zip(ids, logprobs, driver.sequences[asked].logprobs, strict=False):
        best = mx.argsort(-expected)[:5].tolist()
        assert given.token_id == token_id
        assert given.token == tokenizer.decode([token_id])
        assert given.logprob == pytest.approx(expected[token_id].item(), abs=1e-3)
        assert [each[0] for each in given.top] == best
        assert [each[2] for each in given.top] == pytest.approx(expected[mx.array(best)].tolist(), abs=1e-3)


def test_a_stop_string_across_token_borders_is_cut_out(
    engine: MlxEngine, tokenizer: TextTokenizer, references: list[Reference]
) -> None:
    whole = tokenizer.decode(references[1][0])
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
