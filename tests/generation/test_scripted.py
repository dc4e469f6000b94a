"""The scripted engine keeps every rule of the engine protocol."""

from __future__ import annotations

import time

import pytest
from support.engine_driver import Driver
from support.scripted import RECORD, scripted

from mlx_serving.actors.errors import ContextOverflow, InvalidParameter
from mlx_serving.actors.generation.scripted import ScriptedEngine
from mlx_serving.actors.messages.batching import SequenceQueued
from mlx_serving.actors.messages.values import CacheStats, Sampling, Stopping
from mlx_serving.config.schema import Generation


def test_what_it_says_is_a_function_of_prompt_seed_and_choice() -> None:
    driver = scripted()
    first = driver.submit([1, 2, 3])
    same = driver.submit([1, 2, 3])
    others = [
        driver.submit([1, 2, 4]),
        driver.submit([1, 2, 3], Sampling(seed=5)),
        driver.submit([1, 2, 3], index=1),
    ]
    driver.run()
    assert driver.sequences[first].ids == driver.sequences[same].ids
    assert all(driver.sequences[each].ids != driver.sequences[first].ids for each in others)


def test_an_answer_has_exactly_max_tokens_and_a_true_account() -> None:
    driver = scripted()
    driver.submit([1, 2, 3], stopping=Stopping(max_tokens=50))
    driver.run()
    said = driver.sequences[0]
    assert said.text == "".join(f" w{each}" for each in said.ids)
    assert said.end is not None
    assert (said.end.reason, said.end.prompt_tokens, said.end.completion_tokens) == ("length", 3, 50)
    assert len(said.ids) == 50
    assert said.end.queue_seconds == 1.0


def test_the_context_bounds_an_answer_without_max_tokens() -> None:
    driver = scripted()
    driver.submit([1] * 4090, stopping=Stopping())
    driver.run()
    assert len(driver.sequences[0].ids) == 6


def test_it_never_says_end_of_sequence_by_itself() -> None:
    driver = scripted()
    driver.submit([1], stopping=Stopping(max_tokens=3000))
    driver.run()
    assert 2 not in driver.sequences[0].ids


def test_a_script_decides_what_is_said_and_what_ends() -> None:
    driver = scripted(script=lambda _, position: [10, 11, 2][position])
    driver.submit([1], stopping=Stopping(max_tokens=100))
    driver.submit([1], stopping=Stopping(max_tokens=100, stop_token_ids=(11,)))
    driver.submit([1], stopping=Stopping(max_tokens=100, stop=("0 w1",)))
    driver.run()
    eos, stop_id, stop_text = (driver.sequences[each] for each in range(3))
    assert eos.end is not None
    assert (eos.ids, eos.text, eos.end.completion_tokens, eos.end.matched) == ([10, 11], " w10 w11", 3, None)
    assert stop_id.end is not None
    assert (stop_id.ids, stop_id.end.reason, stop_id.end.matched) == ([10], "stop", 11)
    assert stop_text.end is not None
    assert (stop_text.text, stop_text.end.reason, stop_text.end.matched) == (" w1", "stop", "0 w1")


def test_a_script_that_raises_fails_its_sequence_alone() -> None:
    def script(sequence: SequenceQueued, position: int) -> int:
        if sequence.sequence_id == 1 and position == 2:
            raise ArithmeticError("the model broke")
        return 7

    driver = scripted(script=script)
    for _ in range(3):
        driver.submit([1])
    driver.run()
    failed = driver.sequences[1]
    assert failed.error is not None
    assert "the model broke" in failed.error.message
    assert failed.ids == [7, 7]
    assert driver.ids([0, 2]) == [[7] * 8] * 2


def test_a_prompt_is_taken_in_within_the_budget_while_others_go_on() -> None:
    driver = scripted(Generation(prefill_tokens=100, max_prefills=1))
    driver.submit([1], stopping=Stopping(max_tokens=30))
    driver.step()
    driver.submit([1] * 1001, stopping=Stopping(max_tokens=1))
    reports = driver.run()
    taken = [report.prefill_tokens for report in reports if report.prefill_tokens]
    assert taken == [100] * 10
    assert all(report.tokens >= 1 for report in reports)


def test_a_paused_sequence_says_nothing_and_then_the_rest() -> None:
    driver = scripted()
    for _ in range(2):
        driver.submit([1, 2])
    driver.step()
    driver.step()
    driver.engine.pause(0)
    driver.run()
    assert driver.engine.pending == 0
    assert len(driver.sequences[0].ids) < 8
    driver.engine.resume(0)
    driver.run()
    assert driver.sequences[0].ids == driver.sequences[1].ids


def test_a_cancelled_sequence_is_gone_at_once() -> None:
    driver = scripted()
    driver.submit([1])
    driver.step()
    driver.engine.cancel(0)
    driver.engine.cancel(99)
    assert driver.engine.pending == 0
    assert driver.step().outputs == ()


def test_no_more_rows_are_said_together_than_there_are_slots() -> None:
    driver = scripted(Generation(max_rows=3))
    for _ in range(5):
        driver.submit([1])
    reports = driver.run()
    assert max(report.rows for report in reports) == 3
    assert all(each.end is not None for each in driver.sequences.values())


def test_every_step_with_work_takes_the_configured_time() -> None:
    waits: list[float] = []
    engine = ScriptedEngine(RECORD, Generation(scripted_step_seconds=0.25), wait=waits.append)
    driver = Driver(engine)
    driver.step()
    assert waits == []
    driver.submit([1])
    driver.run()
    assert waits == [0.25] * 8


def test_a_prompt_that_cannot_run_is_refused_by_name() -> None:
    driver = scripted()
    with pytest.raises(InvalidParameter, match="empty"):
        driver.submit([])
    with pytest.raises(InvalidParameter, match="token id 1000 must be below the vocabulary size 1000"):
        driver.submit([1, 1000])
    with pytest.raises(ContextOverflow, match="4096"):
        driver.submit([1] * 4096)
    assert driver.engine.pending == 0


def test_it_is_fast_enough_to_measure_everything_else() -> None:
    driver = scripted(Generation(max_rows=64, max_prefills=64))
    for each in range(64):
        driver.submit([each], stopping=Stopping(max_tokens=400))
    started = time.process_time()
    while driver.engine.pending:
        driver.engine.step()
    assert 64 * 400 / (time.process_time() - started) > 50_000


def test_a_sequence_without_an_answer_is_prefilled_and_says_nothing() -> None:
    driver = scripted()
    silent = driver.submit(list(range(900)), stopping=Stopping(max_tokens=0))
    driver.run()
    done = driver.sequences[silent]
    assert (done.ids, done.text) == ([], "")
    assert done.end is not None
    assert (done.end.prompt_tokens, done.end.completion_tokens, done.end.reason) == (900, 0, "length")


def test_it_has_no_prefix_cache_and_says_so() -> None:
    engine = scripted().engine
    engine.clear_cache("all")
    assert engine.cache_stats() == CacheStats(enabled=False)
    assert engine.held_prefixes() is None
