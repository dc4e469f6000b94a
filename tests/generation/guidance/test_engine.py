"""Guided rows in the engine's batch: alone, together, beside free ones, and failing by themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import pytest
from support.eager import eager
from support.engine_driver import GREEDY, Collected, Driver
from support.engines import loaded
from support.guidance_sources import PERSON
from support.tiny_models import make_tiny_model

from mlx_serving.actors.messages.values import Guidance, Sampling, Stopping
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.config.schema import Generation, Speculation

if TYPE_CHECKING:
    from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine

PROMPTS = [list(text.encode()) for text in ("a person:", "hello", "one more prompt that is longer", "x")]
SCHEMA = Guidance("json_schema", json.dumps(PERSON))
NUMBER = Guidance("regex", "-?[0-9]{1,6}(\\.[0-9]{1,3})?")
CHOICE = Guidance("choice", '["green", "grey", "blue"]')
STOP = Stopping(max_tokens=120)


@pytest.fixture(scope="module", params=["llama", "gemma3_text", "mamba2"])
def record(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelRecord:
    """In slabs, in batched caches, and with a state that cannot be rolled back."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="module")
def engine(record: ModelRecord) -> Iterator[MlxEngine]:
    engine = loaded(record)
    yield engine
    engine.close()


def is_person(text: str) -> bool:
    person = json.loads(text)
    return list(person) == ["name", "age"] and len(person["name"]) <= 20 and person["age"] >= 0


def test_every_answer_is_what_it_was_held_to(engine: MlxEngine) -> None:
    driver = Driver(engine)
    people = [driver.submit(prompt, GREEDY, STOP, guidance=SCHEMA) for prompt in PROMPTS]
    sampled = [driver.submit(PROMPTS[0], Sampling(seed=seed), STOP, guidance=SCHEMA) for seed in range(4)]
    numbers = [driver.submit(PROMPTS[1], Sampling(seed=seed), STOP, guidance=NUMBER) for seed in range(4)]
    choice = driver.submit(PROMPTS[1], GREEDY, STOP, guidance=CHOICE)
    driver.run()
    for each in (*people, *sampled):
        collected = driver.sequences[each]
        assert collected.end is not None, collected.error
        if collected.end.reason == "stop":
            assert is_person(collected.text)
    assert all(driver.sequences[each].end.reason == "stop" for each in sampled)  # type: ignore[union-attr]
    assert all(float(driver.sequences[each].text) < 1e6 for each in numbers)
    assert driver.sequences[choice].text in ("green", "grey", "blue")


def test_guided_rows_say_the_same_alone_and_together_and_free_rows_do_not_notice(engine: MlxEngine) -> None:
    asked = [
        (PROMPTS[0], GREEDY, None),
        (PROMPTS[0], GREEDY, SCHEMA),
        (PROMPTS[1], Sampling(seed=5, temperature=1.2), SCHEMA),
        (PROMPTS[1], Sampling(seed=5), None),
        (PROMPTS[2], Sampling(seed=7, top_p=0.8, repetition_penalty=1.2), NUMBER),
        (PROMPTS[3], GREEDY, CHOICE),
    ]
    stopping = Stopping(max_tokens=40)
    alone = []
    for prompt, sampling, guidance in asked:
        driver = Driver(engine)
        each = driver.submit(prompt, sampling, stopping, guidance=guidance)
        driver.run()
        alone.append(driver.sequences[each].ids)
    driver = Driver(engine)
    ids = [driver.submit(prompt, sampling, stopping, guidance=guidance) for prompt, sampling, guidance in asked]
    driver.run()
    assert driver.ids(ids) == alone


def test_taking_forced_tokens_in_together_changes_nothing(tiny_llama: ModelRecord) -> None:
    """Of a model whose caches can be rolled back: no other is given several tokens at once."""
    answers: dict[str, list[Collected]] = {}
    modes: tuple[Literal["off", "lookup"], ...] = ("off", "lookup")
    for mode in modes:
        engine = loaded(tiny_llama, Generation(max_rows=8, speculation=Speculation(mode=mode)))
        if mode != "off":
            eager(engine)
        driver = Driver(engine)
        # Without proposals from the text: forced tokens alone are taken in together.
        ids = [driver.submit(each, Sampling(seed=3), STOP, guidance=SCHEMA, speculation=False) for each in PROMPTS]
        assert sum(report.drafted for report in driver.run()) == 0
        answers[mode] = [driver.sequences[each] for each in ids]
        engine.close()
    for one_by_one, together in zip(answers["off"], answers["lookup"], strict=True):
        assert (together.ids, together.text) == (one_by_one.ids, one_by_one.text)
        assert one_by_one.outputs == len(one_by_one.ids)
        # `{"name"` and `,"age"` must come, with all the signs around them: each a pass or two at most.
        assert together.outputs <= len(together.ids) - 8


def test_no_step_fails_in_which_one_guide_knows_what_must_follow_and_another_does_not(
    tiny_llama: ModelRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = loaded(tiny_llama, Generation(max_rows=8, speculation=Speculation(mode="lookup")))
    eager(engine)
    failures: list[Exception] = []
    recover = engine._recover

    def recovering(error: Exception) -> None:
        failures.append(error)
        recover(error)

    monkeypatch.setattr(engine, "_recover", recovering)
    driver = Driver(engine)
    asked = [(prompt, guidance) for guidance in (SCHEMA, NUMBER) for prompt in PROMPTS]
    rows = [
        driver.submit(each, Sampling(seed=3), STOP, guidance=guidance, speculation=False) for each, guidance in asked
    ]
    driver.run()
    assert failures == []
    assert all(driver.sequences[row].error is None for row in rows)
    engine.close()


def test_an_answer_ends_with_its_last_token_even_past_the_end_of_sequence(engine: MlxEngine) -> None:
    driver = Driver(engine)
    stopping = Stopping(max_tokens=50, ignore_eos=True)
    fixed = driver.submit(PROMPTS[0], GREEDY, stopping, guidance=Guidance("choice", '["yes"]'))
    open_ended = driver.submit(PROMPTS[0], GREEDY, stopping, guidance=Guidance("regex", "yes!?"))
    driver.run()
    end = driver.sequences[fixed].end
    assert end is not None
    assert (driver.sequences[fixed].text, end.reason, end.completion_tokens) == ("yes", "stop", 3)
    other = driver.sequences[open_ended].end
    assert other is not None
    assert other.reason == "stop"


def test_an_answer_that_is_cut_off_ends_by_length(engine: MlxEngine) -> None:
    driver = Driver(engine)
    cut = driver.submit(PROMPTS[0], GREEDY, Stopping(max_tokens=6), guidance=SCHEMA)
    driver.run()
    end = driver.sequences[cut].end
    assert end is not None
    assert (driver.sequences[cut].text, end.reason) == ('{"name', "length")


def test_what_cannot_be_compiled_fails_alone(engine: MlxEngine) -> None:
    driver = Driver(engine)
    bad = driver.submit(PROMPTS[0], GREEDY, STOP, guidance=Guidance("json_schema", '{"uniqueItems": true}', "asked"))
    worse = driver.submit(PROMPTS[0], GREEDY, STOP, guidance=Guidance("regex", "(a{1000}){1000}", "asked"))
    good = driver.submit(PROMPTS[1], GREEDY, STOP, guidance=CHOICE)
    free = driver.submit(PROMPTS[1])
    driver.run()
    for each in (bad, worse):
        error = driver.sequences[each].error
        assert error is not None
        assert (error.code, error.field) == ("invalid_guidance", "asked")
    assert driver.sequences[good].end is not None
    assert len(driver.sequences[free].ids) == 8


def test_what_becomes_too_much_to_follow_fails_alone(engine: MlxEngine) -> None:
    driver = Driver(engine)
    ambiguous = Guidance("grammar", 'start: a a a a a a a a\na: a a | "x" |', "asked")
    bad = driver.submit(PROMPTS[0], Sampling(seed=1), Stopping(max_tokens=400), guidance=ambiguous)
    free = driver.submit(PROMPTS[1], GREEDY, Stopping(max_tokens=30, ignore_eos=True))
    driver.run()
    collected = driver.sequences[bad]
    assert collected.is_over
    assert collected.error is None or collected.error.code == "invalid_guidance"
    assert len(driver.sequences[free].ids) == 30


def test_a_row_that_is_cancelled_or_paused_while_its_guide_is_made(engine: MlxEngine) -> None:
    driver = Driver(engine)
    fresh = [Guidance("regex", f"{name}{{3}}") for name in "kq"]
    gone = driver.submit(PROMPTS[0], GREEDY, STOP, guidance=fresh[0])
    engine.cancel(gone)
    paused = driver.submit(PROMPTS[1], GREEDY, STOP, guidance=fresh[1])
    engine.pause(paused)
    assert engine.pending == 0
    engine.resume(paused)
    driver.run()
    assert driver.sequences[paused].text == "qqq"
    assert driver.sequences[gone].text == ""


def test_pausing_a_guided_row_changes_nothing(engine: MlxEngine) -> None:
    driver = Driver(engine)
    whole = driver.submit(PROMPTS[0], Sampling(seed=9), STOP, guidance=SCHEMA)
    driver.run()
    parts = driver.submit(PROMPTS[0], Sampling(seed=9), STOP, guidance=SCHEMA)
    other = driver.submit(PROMPTS[1], Sampling(seed=2), STOP, guidance=SCHEMA)
    driver.run_until(parts, 5)
    engine.pause(parts)
    driver.run_until(other, 9)
    engine.resume(parts)
    driver.run()
    assert driver.sequences[parts].ids == driver.sequences[whole].ids


@pytest.fixture(scope="module")
def plain_engine(record: ModelRecord) -> Iterator[MlxEngine]:
    engine = loaded(record, Generation(max_rows=8, speculation=Speculation(mode="off")))
    yield engine
    engine.close()


def test_the_next_step_is_set_going_before_tokens_are_handled(
    plain_engine: MlxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(plain_engine)
    row = driver.submit(PROMPTS[0], Sampling(seed=3), STOP, guidance=SCHEMA)
    driver.run_until(row, 3)
    happened: list[str] = []

    def noted(name: str) -> None:
        inner = getattr(plain_engine._decoding, name)

        def noting(*arguments: Any) -> None:
            happened.append(name)
            inner(*arguments)

        monkeypatch.setattr(plain_engine._decoding, name, noting)

    noted("_go")
    noted("_take")
    driver.step()
    driver.run()
    assert happened[:4] == ["_go", "_take"] * 2


def test_a_step_that_fails_loses_no_token_that_was_read(
    plain_engine: MlxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guides have taken it in, so the row must have it too when it is computed again."""
    driver = Driver(plain_engine)
    whole = [driver.submit(prompt, Sampling(seed=9), STOP, guidance=SCHEMA) for prompt in PROMPTS[:2]]
    driver.run()
    again = [driver.submit(prompt, Sampling(seed=9), STOP, guidance=SCHEMA) for prompt in PROMPTS[:2]]
    driver.run_until(again[0], 5)
    decoding, go = plain_engine._decoding, plain_engine._decoding._go

    def fail_once(step: object) -> None:
        monkeypatch.setattr(decoding, "_go", go)
        raise RuntimeError("the device is out of sorts")

    monkeypatch.setattr(decoding, "_go", fail_once)
    driver.run()
    assert driver.ids(again) == driver.ids(whole)


def test_a_guide_that_fails_between_its_tokens_ends_its_row(plain_engine: MlxEngine) -> None:
    """As one does whose masks become too much: no token comes that nothing held."""
    driver = Driver(plain_engine)
    row = driver.submit(PROMPTS[0], GREEDY, STOP, guidance=SCHEMA)
    driver.run_until(row, 3)
    said = list(driver.sequences[row].ids)
    guide = plain_engine._rows[row].guide
    assert guide is not None
    assert not guide.matcher.consume_token(0)
    driver.run()
    assert driver.sequences[row].error is not None
    assert driver.sequences[row].ids == said


def test_a_guide_that_breaks_in_a_way_of_its_own_ends_its_row_alone(
    plain_engine: MlxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(plain_engine)
    whole = driver.submit(PROMPTS[0], Sampling(seed=9), STOP, guidance=SCHEMA)
    driver.run()
    row, other = (driver.submit(prompt, Sampling(seed=9), STOP, guidance=SCHEMA) for prompt in PROMPTS[1::-1])
    driver.run_until(row, 3)
    guide = plain_engine._rows[row].guide

    def break_down(token_id: int) -> None:
        raise OverflowError(token_id)

    monkeypatch.setattr(guide, "advance", break_down)
    driver.run()
    assert "OverflowError" in str(driver.sequences[row].error)
    assert driver.sequences[other].ids == driver.sequences[whole].ids
