"""Prompts prefilled beside running rows, some layers of a chunk at a time where the model has a stack of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from support.engine_driver import GREEDY, Driver
from support.engines import loaded, mlx_lm_greedy
from support.tiny_models import make_tiny_model

from mlx_serving.actors.generation.mlx_engine.batch import Batch
from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine
from mlx_serving.actors.generation.mlx_engine.row import Row
from mlx_serving.actors.generation.pacing import PrefillPace
from mlx_serving.actors.messages.values import Guidance, Sampling, Stopping
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.config.schema import Generation, PrefixCache
from mlx_serving.native.kernels import choice
from mlx_serving.native.kernels.stacks import DecoderStack

LONG = [(7 * place + place * place // 11) % 251 for place in range(300)]
OTHER = LONG[::-1]
RUNNING = list(b"a row that runs")
ENDLESS = Stopping(max_tokens=250, ignore_eos=True)
needs_stack = pytest.mark.skipif(choice.choice == "pure", reason="the native kernels are not built here")


@pytest.fixture(autouse=True)
def _even_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many prompt tokens beside every step, whatever steps take here."""
    monkeypatch.setattr(PrefillPace, "observe", lambda *_: None)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> ModelRecord:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "llama", "llama_4bit")


def engine_of(record: ModelRecord, **settings: Any) -> MlxEngine:
    return loaded(record, Generation(**{"max_rows": 8, "prefix_cache": PrefixCache(block_tokens=16), **settings}))


@pytest.fixture
def engine(record: ModelRecord) -> Iterator[MlxEngine]:
    engine = engine_of(record)
    yield engine
    engine.close()


def beside(engine: MlxEngine, prompt: list[int] = LONG, **fields: Any) -> tuple[Driver, int, int]:
    """A row that runs, and one whose prompt was submitted after it."""
    driver = Driver(engine)
    running = driver.submit(RUNNING, GREEDY, ENDLESS)
    driver.run_until(running, 3)
    return driver, running, driver.submit(prompt, **fields)


def row_of(engine: MlxEngine, sequence_id: int) -> Row:
    return engine._rows[sequence_id]


def step_into_a_chunk(driver: Driver, engine: MlxEngine, sequence_id: int, filled: int = 1) -> Row:
    """Until so much is filled and some layers of the next chunk are done."""
    row = row_of(engine, sequence_id)
    for _ in range(500):
        driver.step()
        if row.filled >= filled and row.chunk is not None and row.chunk.layer > 0:
            return row
    raise AssertionError("no chunk stopped between two layers")


WAYS: list[dict[str, Any]] = [{}, {"in_place_attention": "off"}, {"native_kernels": False}]


@pytest.mark.parametrize("settings", WAYS)
def test_both_rows_say_what_mlx_lm_says(record: ModelRecord, settings: dict[str, Any]) -> None:
    engine = engine_of(record, **settings)
    driver, running, late = beside(engine)
    prefilled = sum(report.prefill_tokens for report in driver.run())
    assert prefilled == len(LONG) - 1
    for sequence_id, prompt, tokens in ((running, RUNNING, 250), (late, LONG, 8)):
        assert driver.sequences[sequence_id].ids == mlx_lm_greedy(engine, prompt, tokens)[0]
    engine.close()


@needs_stack
@pytest.mark.parametrize("kv_type", ["model", "8bit"])
@pytest.mark.parametrize("settings", WAYS)
def test_it_is_used_where_there_is_a_stack(record: ModelRecord, settings: dict[str, Any], kv_type: str) -> None:
    engine = engine_of(record, kv_type=kv_type, **settings)
    driver, _, late = beside(engine)
    if settings:
        row = row_of(engine, late)
        driver.run_until(late, 1)
        assert row.chunk is None
        assert engine._decoding.batch.cache.stack is None
    else:
        step_into_a_chunk(driver, engine, late)
    engine.close()


@needs_stack
@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_caches_get_what_one_pass_gives_them(record: ModelRecord, bits: int) -> None:
    engine = engine_of(record, kv_type=f"{bits}bit")
    driver, _, late = beside(engine)
    row, count = step_into_a_chunk(driver, engine, late), len(LONG) - 1
    found, expected = row.caches, engine._new_caches()
    while row.filled < count:
        driver.step()
    engine._model(mx.array([LONG[:-1]]), cache=expected)
    assert found is not None

    def wide(side: Any) -> np.ndarray[Any, Any]:
        digits, scales, biases = (part[:, :, :count] for part in side)
        return np.array(mx.dequantize(digits, scales, biases, group_size=engine._form.group_size, bits=bits))

    for ours, theirs in zip(found, expected, strict=True):
        for side, other in ((ours.keys, theirs.keys), (ours.values, theirs.values)):
            off = np.abs(wide(side) - wide(other))
            # Sums in another order make another number of a few that are midway between two.
            assert off.max() <= 1.01 * np.abs(np.array(other[1])).max()
            assert (off > 1e-3 * np.abs(wide(other)).max()).mean() < 0.01
    engine.close()


@needs_stack
def test_two_prompts_go_side_by_side(engine: MlxEngine) -> None:
    driver, running, first = beside(engine)
    second = driver.submit(OTHER)
    step_into_a_chunk(driver, engine, first)
    step_into_a_chunk(driver, engine, second)
    driver.run()
    assert driver.ids((first, second)) == [mlx_lm_greedy(engine, prompt, 8)[0] for prompt in (LONG, OTHER)]
    assert driver.sequences[running].ids == mlx_lm_greedy(engine, RUNNING, 250)[0]


@needs_stack
def test_a_chunk_ends_alone_when_nothing_runs_any_more(engine: MlxEngine) -> None:
    driver, running, late = beside(engine)
    step_into_a_chunk(driver, engine, late, filled=20)
    engine.cancel(running)
    reports = driver.run()
    assert len(reports) < 20  # the rest of the prompt went through at once
    assert driver.sequences[late].ids == mlx_lm_greedy(engine, LONG, 8)[0]


@needs_stack
def test_a_cancelled_prompt_disturbs_nobody(engine: MlxEngine) -> None:
    driver, running, late = beside(engine)
    row = step_into_a_chunk(driver, engine, late)
    engine.cancel(late)
    assert row.chunk is None
    again = driver.submit(LONG)
    driver.run()
    assert driver.sequences[late].ids == []
    assert driver.sequences[again].ids == mlx_lm_greedy(engine, LONG, 8)[0]
    assert driver.sequences[running].ids == mlx_lm_greedy(engine, RUNNING, 250)[0]


@needs_stack
@pytest.mark.parametrize("others_end", [False, True])
def test_a_prompt_paused_between_two_layers_goes_on_there(engine: MlxEngine, others_end: bool) -> None:
    driver, running, late = beside(engine)
    row = step_into_a_chunk(driver, engine, late)
    engine.pause(late)
    chunk = row.chunk
    for _ in range(3):
        driver.step()
    if others_end:
        driver.run()
    assert row.chunk is chunk
    engine.resume(late)
    driver.run()
    assert driver.sequences[late].ids == mlx_lm_greedy(engine, LONG, 8)[0]
    assert driver.sequences[running].ids == mlx_lm_greedy(engine, RUNNING, 250)[0]


@needs_stack
def test_it_goes_on_behind_a_cached_prefix_and_leaves_its_own(engine: MlxEngine) -> None:
    driver = Driver(engine)
    driver.submit(LONG[:150])
    driver.run()
    held = mlx_lm_greedy(engine, LONG[:150], 8)[0]
    driver, _, late = beside(engine)
    row = step_into_a_chunk(driver, engine, late)
    assert row.cached_tokens == 150
    assert row.filled >= 150
    driver.run()
    again, as_before = driver.submit([*LONG, 1]), driver.submit(LONG[:150])
    driver.run()
    end = driver.sequences[again].end
    assert end is not None
    assert end.cached_tokens == len(LONG)
    assert driver.sequences[late].ids == mlx_lm_greedy(engine, LONG, 8)[0]
    assert driver.sequences[as_before].ids == held


@needs_stack
def test_layers_that_fail_fail_their_row_alone(engine: MlxEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, running, late = beside(engine)
    step_into_a_chunk(driver, engine, late)

    def failing(*_: object) -> mx.array:
        raise MemoryError("too much")

    monkeypatch.setattr(DecoderStack, "go_on", failing)
    driver.run()
    error = driver.sequences[late].error
    assert error is not None
    assert "too much" in error.message
    assert driver.sequences[running].ids == mlx_lm_greedy(engine, RUNNING, 250)[0]


@needs_stack
def test_a_batch_that_fails_does_not_touch_a_prompt_on_its_way(
    engine: MlxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, running, late = beside(engine)
    neighbour = driver.submit(RUNNING[:5], GREEDY, ENDLESS)
    driver.run_until(neighbour, 2)
    row = step_into_a_chunk(driver, engine, late)
    inner = Batch.forward

    def failing(self: Batch) -> mx.array:
        monkeypatch.setattr(Batch, "forward", inner)
        raise RuntimeError("out of order")

    monkeypatch.setattr(Batch, "forward", failing)
    driver.step()
    assert row.filled or row.chunk is not None
    driver.run()
    assert driver.sequences[late].ids == mlx_lm_greedy(engine, LONG, 8)[0]
    for sequence_id, prompt in ((running, RUNNING), (neighbour, RUNNING[:5])):
        assert driver.sequences[sequence_id].ids == mlx_lm_greedy(engine, prompt, 250)[0]


@needs_stack
def test_a_stack_that_holds_no_longer_leaves_its_chunk_to_the_model(
    engine: MlxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when an adapter is loaded: what the layers have of the chunk is computed again."""
    driver, running, late = beside(engine)
    row = step_into_a_chunk(driver, engine, late)
    monkeypatch.setattr(DecoderStack, "holds", lambda self: False)
    driver.step()
    assert row.chunk is None
    driver.run()
    assert driver.sequences[late].ids == mlx_lm_greedy(engine, LONG, 8)[0]
    assert driver.sequences[running].ids == mlx_lm_greedy(engine, RUNNING, 250)[0]


@needs_stack
def test_whole_chunks_beside_layered_ones_are_no_smaller_than_they_pay(
    engine: MlxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, _, late = beside(engine)
    monkeypatch.setattr(DecoderStack, "holds", lambda self: False)
    driver.step()
    assert row_of(engine, late).filled == 8


@needs_stack
def test_guided_and_sampled_rows_run_beside_it(engine: MlxEngine) -> None:
    alone = Driver(engine)
    seeded = Sampling(seed=5, temperature=1.2)
    expected = alone.submit(RUNNING, seeded, ENDLESS)
    alone.run()
    driver = Driver(engine)
    running = driver.submit(RUNNING, seeded, ENDLESS)
    guided = driver.submit(RUNNING, GREEDY, Stopping(max_tokens=60), guidance=Guidance("choice", '["green", "blue"]'))
    driver.run_until(running, 3)
    late = driver.submit(LONG)
    driver.run()
    assert driver.sequences[late].ids == mlx_lm_greedy(engine, LONG, 8)[0]
    assert driver.sequences[running].ids == alone.sequences[expected].ids
    assert driver.sequences[guided].text in ("green", "blue")


@needs_stack
def test_a_layer_of_a_chunk_is_worth_no_more_than_goes_beside_a_step(engine: MlxEngine) -> None:
    """However few layers the model has."""
    driver, _, late = beside(engine)
    row = step_into_a_chunk(driver, engine, late)
    stack = engine._decoding.batch.cache.stack
    assert stack is not None
    assert row.chunk is not None
    assert row.chunk.tokens == engine._decoding.pace.budget * stack.layers


def test_a_prompt_waits_while_the_pace_wants_steps_without(engine: MlxEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def allowance(self: PrefillPace, rows: int, before: int) -> int:
        asked.append(rows)
        return 0 if len(asked) % 3 else self.budget

    monkeypatch.setattr(PrefillPace, "allowance", allowance)
    driver, running, late = beside(engine, LONG[:60])
    found = [driver.step().prefill_tokens for _ in range(6)]
    assert [tokens > 0 for tokens in found] == [False, False, True] * 2
    driver.run()
    assert set(asked) == {1}
    assert driver.sequences[late].ids == mlx_lm_greedy(engine, LONG[:60], 8)[0]
    assert driver.sequences[running].ids == mlx_lm_greedy(engine, RUNNING, 250)[0]
