"""Speculative answers are, token for token, those of plain decoding."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import attrs
import mlx.core as mx
import mlx.nn
import pytest
from support.eager import eager
from support.engine_driver import GREEDY, Collected, Driver
from support.tiny_models import make_tiny_model

from mlx_serving.actors.errors import ModelLoadFailed
from mlx_serving.actors.generation.mlx_engine.draft_model import round_weights
from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine
from mlx_serving.actors.generation.mlx_engine.speculation import _PAUSE, Speculator
from mlx_serving.actors.generation.speculation.acceptance import SharedAcceptance
from mlx_serving.actors.generation.speculation.costs import StepCosts
from mlx_serving.actors.generation.speculation.planner import Planner
from mlx_serving.actors.generation.speculation.row import RowSpeculation
from mlx_serving.actors.messages.values import DraftCounts, Sampling, Stopping, pack_ids
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.actors.models.tokenizer import TextTokenizer
from mlx_serving.config.schema import Generation, Speculation

LONG = Stopping(max_tokens=60, ignore_eos=True)
SAMPLINGS = {
    "greedy": GREEDY,
    "seeded": Sampling(temperature=0.9, seed=11),
    "filtered": Sampling(temperature=0.8, top_k=20, top_p=0.9, min_p=0.02, seed=5),
    "penalised": Sampling(
        temperature=0.0, repetition_penalty=1.2, frequency_penalty=0.3, presence_penalty=0.2, logit_bias={65: 2.0}
    ),
    "penalised and sampled": Sampling(temperature=0.7, frequency_penalty=0.5, presence_penalty=-0.3, seed=2),
}


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
    speculation = Speculation(mode=mode, max_tokens=longest, draft_weights="model")  # type: ignore[arg-type]
    settings = Generation(max_rows=8, speculation=speculation)
    engine = MlxEngine(record, settings, TextTokenizer.load(record.path), draft=draft)
    engine.load()
    return engine


@pytest.fixture
def plain(family: Family) -> Iterator[MlxEngine]:
    engine = engine_of(family.target, "off")
    yield engine
    engine.close()


PROMPTS = [[1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4], [9, 8, 7] * 9, [40, 41, 42], list(range(100, 160))]


def answers(engine: MlxEngine, sampling: Sampling, **fields: Any) -> list[list[int]]:
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


def run(engine: MlxEngine, prompt: list[int], sampling: Sampling = GREEDY, **fields: Any) -> Collected:
    driver = Driver(engine)
    sequence = driver.submit(prompt, sampling, LONG, **fields)
    driver.run()
    return driver.sequences[sequence]


@pytest.fixture
def looking(family: Family) -> Iterator[MlxEngine]:
    """It proposes whatever the text has."""
    engine = eager(engine_of(family.target, "lookup"))
    yield engine
    engine.close()


def test_a_right_prediction_is_accepted_to_its_end(plain: MlxEngine, looking: MlxEngine) -> None:
    expected = run(plain, PROMPTS[2])
    said = run(looking, PROMPTS[2], prediction_ids=pack_ids(expected.ids))
    assert (said.ids, said.text) == (expected.ids, expected.text)
    assert said.end is not None
    assert said.end.drafts.accepted_prediction > 45
    assert said.end.drafts.rejected_prediction == 0
    assert said.outputs < expected.outputs / 3


def test_a_step_that_checks_nothing_tells_of_no_check_before_it(plain: MlxEngine, looking: MlxEngine) -> None:
    expected = run(plain, PROMPTS[2])
    driver = Driver(looking)
    driver.submit(PROMPTS[2], prediction_ids=pack_ids(expected.ids))
    assert driver.run()[-1].drafted > 0
    driver.submit(PROMPTS[2])
    report = driver.step()
    assert (report.rows, report.tokens) == (1, 1)
    assert (report.drafted, report.accepted) == (0, ())


def test_a_wrong_prediction_changes_nothing(plain: MlxEngine, looking: MlxEngine) -> None:
    expected = run(plain, PROMPTS[2])
    wrong = [(token + 1) % 256 for token in expected.ids]
    said = run(looking, PROMPTS[2], prediction_ids=pack_ids(wrong))
    assert said.ids == expected.ids
    assert said.end is not None
    assert said.end.drafts.accepted_prediction <= said.end.drafts.rejected_prediction


def test_a_request_that_wants_none_gets_none(plain: MlxEngine, looking: MlxEngine) -> None:
    expected = run(plain, PROMPTS[2])
    said = run(looking, PROMPTS[2], prediction_ids=pack_ids(expected.ids), speculation=False)
    assert said.end is not None
    assert said.end.drafts == DraftCounts()


def test_an_answer_ends_where_it_would_have_ended_in_the_midst_of_a_proposal(
    plain: MlxEngine, looking: MlxEngine
) -> None:
    whole = run(plain, PROMPTS[2])
    for stopping in (Stopping(max_tokens=17), Stopping(60, stop_token_ids=(whole.ids[20],), ignore_eos=True)):
        ends = []
        for engine, prediction in ((plain, b""), (looking, pack_ids(whole.ids))):
            driver = Driver(engine)
            sequence = driver.submit(PROMPTS[2], GREEDY, stopping, prediction_ids=prediction)
            driver.run()
            said = driver.sequences[sequence]
            assert said.end is not None
            ends.append((said.ids, said.text, said.end.reason, said.end.matched, said.end.completion_tokens))
        assert ends[0] == ends[1]


def test_rows_with_log_probabilities_decode_token_by_token_beside_others(plain: MlxEngine, looking: MlxEngine) -> None:
    wanted = Sampling(temperature=0.0, logprobs=True, top_logprobs=2)
    expected = [run(plain, prompt, sampling) for prompt in PROMPTS for sampling in (GREEDY, wanted)]
    driver = Driver(looking)
    ids = [driver.submit(prompt, sampling, LONG) for prompt in PROMPTS for sampling in (GREEDY, wanted)]
    driver.run()
    assert driver.ids(ids) == [each.ids for each in expected]
    for each, alone in zip(ids, expected, strict=True):
        said = driver.sequences[each]
        assert len(said.logprobs) == len(alone.logprobs)
        assert all(
            one.logprob == pytest.approx(other.logprob, abs=1e-3)
            for one, other in zip(said.logprobs, alone.logprobs, strict=True)
        )


def test_a_row_that_pauses_or_leaves_disturbs_no_other(family: Family, plain: MlxEngine) -> None:
    engine = eager(engine_of(family.target, "auto", family.draft))
    expected = answers(plain, GREEDY)
    driver = Driver(engine)
    ids = [driver.submit(prompt, GREEDY, LONG) for prompt in PROMPTS]
    driver.run_until(ids[0], 8)
    engine.pause(ids[0])
    engine.cancel(ids[1])
    driver.run()
    late = driver.submit(PROMPTS[1], GREEDY, LONG)
    engine.resume(ids[0])
    driver.run()
    assert driver.ids([ids[0], late, ids[2], ids[3]]) == expected
    engine.close()


def test_a_draft_model_that_fails_is_left_out(family: Family, plain: MlxEngine) -> None:
    engine = eager(engine_of(family.target, "draft", family.draft))
    speculator = engine._decoding.speculator
    assert speculator is not None
    draft = speculator._draft
    assert draft is not None
    draft._model = None
    draft._cache = None  # type: ignore[assignment]
    assert answers(engine, GREEDY) == answers(plain, GREEDY)
    assert speculator._draft is None
    engine.close()


def test_a_prompt_that_costs_more_than_drafts_save_is_not_taken_in(family: Family, plain: MlxEngine) -> None:
    engine = eager(engine_of(family.target, "draft", family.draft))
    draft = engine._draft
    assert draft is not None
    # Proposals save nearly all of the second that a token costs then, of an answer of 60 tokens.
    for seconds, is_taken_in in ((3.0, False), (1.0, True)):
        draft._prompt_seconds = seconds
        said = run(engine, PROMPTS[1])
        assert said.ids == run(plain, PROMPTS[1]).ids
        assert said.end is not None
        assert (said.end.drafts != DraftCounts()) == is_taken_in
    engine.close()


def test_a_draft_model_of_another_vocabulary_is_refused_with_both_names(family: Family) -> None:
    folder = family.draft.path.parent / "stranger"
    stranger = attrs.evolve(make_tiny_model(folder, "llama"), name="stranger") if not folder.exists() else None
    assert stranger is not None
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    ids = vocabulary["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    with pytest.raises(ModelLoadFailed, match=r"stranger has another vocabulary than .*: 2 tokens differ, as 'a'"):
        engine_of(family.target, "draft", stranger)


def test_an_architecture_that_cannot_be_rolled_back_is_no_draft_model(family: Family, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match="cannot be a draft model"):
        engine_of(family.target, "draft", make_tiny_model(tmp_path / "mamba", "mamba2"))


def test_where_it_does_not_pay_nothing_is_proposed(family: Family) -> None:
    engine = engine_of(family.target, "auto", family.draft)
    speculator = engine._decoding.speculator
    assert speculator is not None
    speculator._planner.costs = speculator._costs = StepCosts({1: 1.0, 2: 3.0})
    driver = Driver(engine)
    ids = [driver.submit(prompt, GREEDY, LONG) for prompt in PROMPTS]
    reports = driver.run()
    assert not any(report.drafted for report in reports)
    assert len(driver.ids(ids)) == len(PROMPTS)
    engine.close()


def test_whether_a_draft_model_would_save_anything_is_asked_now_and_then_while_it_would_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saved, asked = 0.0, 0

    def saving(*_: Any) -> float:
        nonlocal asked
        asked += 1
        return saved

    monkeypatch.setattr(Planner, "saving", saving)
    speculator = Speculator("draft", Planner(StepCosts({1: 1.0}), longest=4), None, monotonic)
    known = [RowSpeculation([1, 2, 3], [], SharedAcceptance(), looks_up=False), None]
    assert [speculator._saving(known) for _ in range(2 * _PAUSE + 1)] == [0.0] * (2 * _PAUSE + 1)
    assert asked == 3
    saved = 0.5
    assert [speculator._saving(known) for _ in range(_PAUSE + 1)] == [0.0] * (_PAUSE - 1) + [0.5, 0.5]


def test_weights_of_a_draft_model_are_rounded_and_it_still_proposes(family: Family, plain: MlxEngine) -> None:
    settings = Generation(max_rows=8, speculation=Speculation(mode="draft", draft_weights="4bit"))
    record = family.target
    engine = MlxEngine(record, settings, TextTokenizer.load(record.path), draft=record)
    engine.load()
    assert answers(eager(engine), GREEDY) == answers(plain, GREEDY)
    engine.close()


@pytest.mark.parametrize("bits", [None, 8])
def test_rounding_leaves_weights_of_four_bits(bits: int | None) -> None:
    nn: Any = mlx.nn
    layer = nn.Linear(64, 96)
    model = nn.Sequential(layer if bits is None else nn.QuantizedLinear.from_linear(layer, 32, bits), nn.ReLU())
    x = mx.random.normal((3, 64))
    before = model(x)
    assert round_weights(model) == 1
    assert (model.layers[0].bits, model.layers[0].group_size) == (4, 64)
    assert bool(mx.all(mx.abs(model(x) - before) < 0.2).item())
    assert round_weights(model) == 0
