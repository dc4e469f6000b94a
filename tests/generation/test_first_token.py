"""The first token of a prompt that nothing decodes beside: it comes from the pass that ends the prompt."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import pytest
from support.engine_driver import GREEDY, Driver
from support.engines import loaded, mlx_lm_greedy

from mlx_serving.actors.generation.mlx_engine import prefill, prompts
from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine
from mlx_serving.actors.messages.values import Guidance, Sampling, Stopping
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.config.schema import Generation, PrefixCache

SHORT = list(b"hello")
LONG = list(b"a prompt that is longer than what one pass is worth for")
LIMIT = prompts._FIRST_TOKENS["cpu"]


@pytest.fixture
def engine(tiny_llama: ModelRecord) -> Iterator[MlxEngine]:
    engine = loaded(tiny_llama, Generation(max_rows=4, prefix_cache=PrefixCache(block_tokens=16)))
    yield engine
    engine.close()


def test_one_step_takes_a_short_prompt_in_and_says_its_first_token(engine: MlxEngine) -> None:
    driver = Driver(engine)
    row = driver.submit(SHORT)
    report = driver.step()
    assert (report.prefill_tokens, report.tokens, report.rows) == (len(SHORT), 1, 1)
    assert len(driver.sequences[row].ids) == 1
    driver.run()
    assert driver.sequences[row].ids == mlx_lm_greedy(engine, SHORT, 8)[0]


def test_a_long_prompt_has_its_last_token_to_the_batch(engine: MlxEngine) -> None:
    driver = Driver(engine)
    driver.submit(LONG)
    report = driver.step()
    assert (report.prefill_tokens, report.tokens) == (len(LONG) - 1, 0)


def test_what_is_left_behind_a_cached_prefix_counts(engine: MlxEngine) -> None:
    driver = Driver(engine)
    driver.submit(LONG)
    driver.run()
    row = driver.submit([*LONG, *SHORT])
    report = driver.step()
    assert (report.prefill_tokens, report.tokens) == (len(SHORT), 1)
    driver.run()
    assert driver.sequences[row].ids == mlx_lm_greedy(engine, [*LONG, *SHORT], 8)[0]


def test_the_prefix_cache_gets_its_prompt_once_the_token_is_out(engine: MlxEngine) -> None:
    driver = Driver(engine)
    prompt = LONG[:LIMIT]
    driver.submit(prompt)
    assert driver.step().tokens == 1
    assert engine.cache_stats().tokens == 0
    driver.step()
    assert engine.cache_stats().tokens == len(prompt)


def test_the_prompt_of_a_row_that_is_cancelled_after_it_is_kept(engine: MlxEngine) -> None:
    driver = Driver(engine)
    prompt = LONG[:LIMIT]
    row = driver.submit(prompt)
    driver.step()
    engine.cancel(row)
    assert engine.pending == 0
    assert engine.cache_stats().tokens == len(prompt)


def test_nothing_waits_for_it_while_others_decode(engine: MlxEngine) -> None:
    driver = Driver(engine)
    running = driver.submit(LONG, stopping=Stopping(max_tokens=20, ignore_eos=True))
    driver.run_until(running, 2)
    row = driver.submit(SHORT)
    report = driver.step()
    assert report.prefill_tokens == len(SHORT) - 1
    assert driver.sequences[row].ids == []
    driver.run()
    assert driver.sequences[row].ids == mlx_lm_greedy(engine, SHORT, 8)[0]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(seed=4, temperature=1.3),
        Sampling(seed=4, top_p=0.8, repetition_penalty=1.3, frequency_penalty=0.4),
        Sampling(temperature=0, logprobs=True, top_logprobs=3),
    ],
)
def test_it_is_the_one_that_the_batch_would_draw(
    tiny_llama: ModelRecord, monkeypatch: pytest.MonkeyPatch, sampling: Sampling
) -> None:
    found = []
    for limit in (LIMIT, 0):
        monkeypatch.setitem(prompts._FIRST_TOKENS, "cpu", limit)
        engine = loaded(tiny_llama)
        driver = Driver(engine)
        row = driver.submit(SHORT, sampling, Stopping(max_tokens=12, ignore_eos=True))
        assert driver.step().tokens == (1 if limit else 0)
        driver.run()
        found.append(driver.sequences[row])
        engine.close()
    assert found[0].ids == found[1].ids
    assert found[0].text == found[1].text
    assert [each.token_id for each in found[0].logprobs] == [each.token_id for each in found[1].logprobs]
    assert [each.logprob for each in found[0].logprobs] == pytest.approx([each.logprob for each in found[1].logprobs])


def test_a_guide_holds_it(engine: MlxEngine) -> None:
    driver = Driver(engine)
    guidance = Guidance("choice", '["green", "blue"]')
    for _ in range(2):  # the second finds its guide compiled
        row = driver.submit(SHORT, GREEDY, Stopping(max_tokens=20), guidance=guidance)
        driver.run()
        assert driver.sequences[row].text in ("green", "blue")


def test_an_answer_of_one_token_ends_with_it_and_leaves_its_prompt_to_others(engine: MlxEngine) -> None:
    driver = Driver(engine)
    prompt = LONG[: LIMIT - 1] + LONG[:1]
    row = driver.submit(prompt, stopping=Stopping(max_tokens=1, ignore_eos=True))
    driver.step()
    assert driver.sequences[row].end is not None
    assert engine.pending == 0
    again = driver.submit([*prompt, 1])
    driver.run()
    end = driver.sequences[again].end
    assert end is not None
    assert end.cached_tokens == len(prompt)


def test_a_row_whose_logits_are_not_finite_fails(engine: MlxEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = prefill.fill_all
    monkeypatch.setattr(prefill, "fill_all", lambda *arguments: inner(*arguments) * mx.nan)
    driver = Driver(engine)
    bad = driver.submit(SHORT)
    driver.step()
    error = driver.sequences[bad].error
    assert error is not None
    assert "not finite" in error.message
    assert engine.pending == 0


def test_a_pass_that_fails_fails_its_row_alone(engine: MlxEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise MemoryError("too much")

    monkeypatch.setattr(prefill, "fill_all", failing)
    driver = Driver(engine)
    bad = driver.submit(SHORT)
    driver.step()
    assert driver.sequences[bad].error is not None
    assert engine.pending == 0
