"""The MLX engine on a small random model: rows come, go, pause and never touch each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from support.engine_driver import GREEDY, Driver
from support.engines import loaded, mlx_lm_greedy
from support.tiny_models import EOS, make_tiny_model

from mlx_serving.actors.errors import ContextOverflow, InvalidParameter, ModelLoadFailed
from mlx_serving.actors.generation.mlx_engine import loading
from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine
from mlx_serving.actors.messages.values import Sampling, Stopping
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.actors.models.tokenizer import TextTokenizer
from mlx_serving.config.schema import Generation
from mlx_serving.native.kernels.operations import OPERATIONS

PROMPTS = [list(text.encode()) for text in ("a", "hello", "the cat sat", "1 2 3 4 5 6 7", "zz", "so it goes" * 4)]


@pytest.fixture
def expected(tiny: MlxEngine) -> list[list[int]]:
    return [mlx_lm_greedy(tiny, prompt, 8)[0] for prompt in PROMPTS]


def test_a_batch_says_what_mlx_lm_says_for_each_alone(tiny: MlxEngine, expected: list[list[int]]) -> None:
    driver = Driver(tiny)
    ids = [driver.submit(prompt) for prompt in PROMPTS]
    driver.run()
    assert driver.ids(ids) == expected


def test_rows_that_join_and_leave_at_any_time_say_the_same(tiny: MlxEngine, expected: list[list[int]]) -> None:
    driver = Driver(tiny)
    ids = []
    for prompt in PROMPTS:
        ids.append(driver.submit(prompt))
        driver.step()
        driver.step()
    driver.run()
    again = [driver.submit(prompt) for prompt in reversed(PROMPTS)]
    driver.run()
    assert driver.ids(ids) == expected
    assert driver.ids(reversed(again)) == expected


def test_a_row_says_its_tokens_one_a_step(tiny: MlxEngine) -> None:
    driver = Driver(tiny)
    driver.submit(PROMPTS[0])
    driver.submit(PROMPTS[1])
    driver.run()
    assert [each.outputs for each in driver.sequences.values()] == [8, 8]


@pytest.mark.parametrize("alone", [True, False])
def test_a_paused_row_says_nothing_and_then_the_rest(tiny: MlxEngine, expected: list[list[int]], alone: bool) -> None:
    driver = Driver(tiny)
    paused = driver.submit(PROMPTS[2])
    others = [] if alone else [driver.submit(PROMPTS[1]), driver.submit(PROMPTS[3])]
    driver.run_until(paused, 3)
    tiny.pause(paused)
    before = len(driver.sequences[paused].ids)
    driver.run()
    assert tiny.pending == 0
    assert len(driver.sequences[paused].ids) == before
    late = driver.submit(PROMPTS[5])
    driver.step()
    tiny.resume(paused)
    driver.run()
    assert driver.sequences[paused].ids == expected[2]
    assert driver.sequences[late].ids == expected[5]
    assert driver.ids(others) == ([] if alone else [expected[1], expected[3]])


def test_a_row_can_be_paused_at_every_token_of_its_answer(tiny: MlxEngine, expected: list[list[int]]) -> None:
    driver = Driver(tiny)
    ids = [driver.submit(PROMPTS[1]), driver.submit(PROMPTS[3])]
    while tiny.pending:
        tiny.pause(ids[0])
        driver.step()
        tiny.resume(ids[0])
        driver.step()
    assert driver.ids(ids) == [expected[1], expected[3]]


def test_pausing_during_prefill_and_before_it_keeps_the_tokens(
    tiny_llama: ModelRecord, expected: list[list[int]]
) -> None:
    engine = loaded(tiny_llama, Generation(prefill_tokens=16, max_prefills=1))
    driver = Driver(engine)
    driver.submit(PROMPTS[0])
    driver.step()
    ids = [driver.submit(PROMPTS[5]), driver.submit(PROMPTS[2])]
    driver.step()
    for each in ids:
        engine.pause(each)
    driver.run()
    assert driver.ids(ids) == [[], []]
    for each in ids:
        engine.resume(each)
    driver.run()
    assert driver.ids(ids) == [expected[5], expected[2]]


def test_a_cancelled_row_frees_its_place_within_one_step(tiny: MlxEngine, expected: list[list[int]]) -> None:
    driver = Driver(tiny)
    ids = [driver.submit(prompt) for prompt in PROMPTS[:3]]
    driver.run_until(ids[0], 3)
    tiny.cancel(ids[1])
    tiny.cancel(99)
    said = len(driver.sequences[ids[1]].ids)
    driver.step()
    assert len(tiny._decoding.batch.rows) == 2
    driver.run()
    assert len(driver.sequences[ids[1]].ids) == said
    assert driver.ids([ids[0], ids[2]]) == [expected[0], expected[2]]


def test_a_row_can_be_cancelled_at_any_moment_of_its_life(tiny: MlxEngine, expected: list[list[int]]) -> None:
    driver = Driver(tiny)
    for moment in range(12):
        cancelled, other = driver.submit(PROMPTS[5]), driver.submit(PROMPTS[1])
        for _ in range(moment):
            driver.step()
        if moment % 2:
            tiny.pause(cancelled)
            driver.step()
        tiny.cancel(cancelled)
        tiny.resume(cancelled)
        driver.run()
        assert driver.sequences[other].ids == expected[1]
    assert tiny._decoding.batch.rows == []


def test_the_allocators_limits_are_those_of_the_settings() -> None:
    cache, memory = mx.set_cache_limit(1 << 30), mx.set_memory_limit(1 << 40)
    try:
        loading.prepare_device(Generation(cache_limit_bytes=1 << 28, memory_limit_bytes=1 << 34))
        assert (mx.set_cache_limit(cache), mx.set_memory_limit(1 << 40)) == (1 << 28, 1 << 34)
        loading.prepare_device(Generation())
        assert mx.set_memory_limit(memory) == 1 << 40
    finally:
        mx.set_cache_limit(cache)
        mx.set_memory_limit(memory)


def test_no_native_kernel_runs_where_the_setting_leaves_them_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    for name in ("attend_in_place", "adjust", "draw"):  # those of layers come with the layers
        monkeypatch.setattr(OPERATIONS, name, lambda *_, name=name: called.append(name), raising=False)
    driver = Driver(loaded(make_tiny_model(tmp_path / "tiny", "llama_4bit"), Generation(native_kernels=False)))
    sampled = Sampling(temperature=1.0, repetition_penalty=1.2)
    ids = [driver.submit([5, 6, 7], sampling) for sampling in (GREEDY, sampled)]
    driver.run()
    assert [len(each) for each in driver.ids(ids)] == [8, 8]
    assert not called


def test_no_more_rows_decode_together_than_there_are_slots(tiny_llama: ModelRecord, expected: list[list[int]]) -> None:
    driver = Driver(loaded(tiny_llama, Generation(max_rows=2)))
    ids = [driver.submit(prompt) for prompt in PROMPTS]
    reports = driver.run()
    assert max(report.rows for report in reports) == 2
    assert driver.ids(ids) == expected


def test_a_running_row_gets_a_token_between_any_two_chunks_of_prefill(
    tiny_llama: ModelRecord, expected: list[list[int]]
) -> None:
    driver = Driver(loaded(tiny_llama, Generation(prefill_tokens=16)))
    running = driver.submit(PROMPTS[0], stopping=Stopping(max_tokens=40, ignore_eos=True))
    driver.run_until(running, 2)
    long, short = driver.submit(PROMPTS[2] * 20), driver.submit(PROMPTS[1])
    reports = driver.run()
    filling = [report for report in reports if report.prefill_tokens]
    assert sum(report.prefill_tokens for report in filling) == 219 + 4
    assert max(report.prefill_tokens for report in filling) == 16
    assert all(report.tokens >= 1 for report in filling)
    assert driver.sequences[short].ids == expected[1]
    assert driver.sequences[long].ids == mlx_lm_greedy(driver.engine, PROMPTS[2] * 20, 8)[0]  # type: ignore[arg-type]


def test_a_row_joins_others_in_the_step_after_its_last_chunk(tiny: MlxEngine, expected: list[list[int]]) -> None:
    driver = Driver(tiny)
    running = driver.submit(PROMPTS[0], stopping=Stopping(max_tokens=40, ignore_eos=True))
    driver.run_until(running, 2)
    joining = driver.submit(PROMPTS[1])
    rows: list[tuple[int, int]] = []
    while len(rows) < 3:
        report = driver.step()
        rows.append((report.prefill_tokens, len(tiny._decoding.batch.rows)))
    assert rows == [(4, 1), (0, 2), (0, 2)]
    driver.run()
    assert driver.sequences[joining].ids == expected[1]


def test_a_prompt_of_one_token_needs_no_prefill(tiny: MlxEngine, expected: list[list[int]]) -> None:
    driver = Driver(tiny)
    ids = [driver.submit(PROMPTS[0]), driver.submit(PROMPTS[0]), driver.submit(PROMPTS[1])]
    driver.run()
    assert driver.ids(ids) == [expected[0], expected[0], expected[1]]


def test_a_sequence_without_an_answer_is_prefilled_and_disturbs_nobody(
    tiny: MlxEngine, expected: list[list[int]]
) -> None:
    driver = Driver(tiny)
    silent = [driver.submit(list(range(1, 90)), stopping=Stopping(max_tokens=0))]
    ids = [driver.submit(prompt) for prompt in PROMPTS]
    driver.step()
    silent.append(driver.submit([5], stopping=Stopping(max_tokens=0)))
    driver.run()
    assert driver.ids(ids) == expected
    assert driver.ids(silent) == [[], []]
    ends = [driver.sequences[each].end for each in silent]
    assert [(end.prompt_tokens, end.completion_tokens) for end in ends if end is not None] == [(89, 0), (1, 0)]


def test_end_of_sequence_and_stop_tokens_end_a_row_and_not_its_neighbours(tiny: MlxEngine) -> None:
    # The bias forces the end of sequence on the first row from its first token on.
    driver = Driver(tiny)
    ended = driver.submit(PROMPTS[1], Sampling(temperature=0, logit_bias={EOS: 100.0}), Stopping(max_tokens=20))
    other = driver.submit(PROMPTS[1])
    driver.run()
    said = driver.sequences[other].ids
    stopped = driver.submit(PROMPTS[1], stopping=Stopping(max_tokens=20, stop_token_ids=(said[3],)))
    driver.run()
    end = driver.sequences[ended].end
    assert end is not None
    assert (driver.sequences[ended].ids, end.reason, end.completion_tokens, end.matched) == (
        [],
        "stop",
        1,
        None,
    )
    end = driver.sequences[stopped].end
    assert end is not None
    assert driver.sequences[stopped].ids == said[: said.index(said[3])]
    assert end.matched == said[3]


def test_an_answer_ends_at_the_context_at_the_latest(tiny: MlxEngine) -> None:
    driver = Driver(tiny)
    driver.submit([65] * 500, stopping=Stopping(ignore_eos=True))
    driver.run()
    end = driver.sequences[0].end
    assert end is not None
    assert (end.reason, end.prompt_tokens, end.completion_tokens) == ("length", 500, 12)


def test_what_can_never_run_is_refused_and_disturbs_nobody(tiny: MlxEngine, expected: list[list[int]]) -> None:
    driver = Driver(tiny)
    running = driver.submit(PROMPTS[1])
    driver.step()
    for prompt, kind in (([], InvalidParameter), ([70000], InvalidParameter), ([65] * 1024, ContextOverflow)):
        with pytest.raises(kind):
            driver.submit(prompt)
    with pytest.raises(InvalidParameter):
        driver.submit([65], Sampling(logit_bias={70000: 1.0}))
    driver.run()
    assert driver.sequences[running].ids == expected[1]


def test_a_seeded_row_says_the_same_alone_and_beside_others(tiny: MlxEngine) -> None:
    driver = Driver(tiny)
    seeded = [
        Sampling(seed=11),
        Sampling(seed=11, temperature=0.7, top_p=0.9),
        Sampling(seed=12, top_k=5, min_p=0.05),
        Sampling(seed=13, repetition_penalty=1.3, presence_penalty=0.4, logit_bias={65: 2.0}),
    ]
    alone = []
    for sampling in seeded:
        alone.append(driver.submit(PROMPTS[1], sampling))
        driver.run()
    together = []
    for sampling in seeded:
        driver.submit(PROMPTS[3], Sampling(temperature=1.5))
        together.append(driver.submit(PROMPTS[1], sampling))
        driver.step()
    driver.run()
    assert driver.ids(together) == driver.ids(alone)
    other_choice = driver.submit(PROMPTS[1], seeded[0], index=1)
    driver.run()
    assert driver.sequences[other_choice].ids != driver.sequences[alone[0]].ids


def test_log_probabilities_are_those_of_the_raw_model(tiny: MlxEngine) -> None:
    driver = Driver(tiny)
    asked = driver.submit(PROMPTS[1], Sampling(temperature=0, logprobs=True, top_logprobs=3))
    few = driver.submit(PROMPTS[1], Sampling(temperature=0, logprobs=True))
    silent = driver.submit(PROMPTS[3])
    driver.run()
    ids, logprobs = mlx_lm_greedy(tiny, PROMPTS[1], 8)
    assert driver.sequences[asked].ids == ids
    assert driver.sequences[silent].logprobs == []
    for token_id, expected, full, own in zip(
        ids, logprobs, driver.sequences[asked].logprobs, driver.sequences[few].logprobs, strict=True
    ):
        best = mx.argsort(-expected)[:3].tolist()
        assert full.token_id == own.token_id == token_id
        assert full.logprob == pytest.approx(expected[token_id].item(), abs=1e-4)
        assert [each[0] for each in full.top] == best
        assert [each[2] for each in full.top] == pytest.approx(expected[mx.array(best)].tolist(), abs=1e-4)
        assert own.top == ()


def test_memory_returns_when_the_last_row_has_left(tiny: MlxEngine) -> None:
    driver = Driver(tiny)

    def serve() -> None:
        for prompt in PROMPTS:
            driver.submit(prompt, Sampling(seed=1, presence_penalty=0.1))
        driver.run_until(0 if len(driver.sequences) == len(PROMPTS) else len(driver.sequences) - 1, 2)
        tiny.cancel(len(driver.sequences) - 1)
        driver.run()

    serve()
    before = mx.get_active_memory()
    for _ in range(10):
        serve()
    assert mx.get_active_memory() <= before + 4096


def test_a_model_that_cannot_be_loaded_says_why(tiny_llama: ModelRecord, folder: Path) -> None:
    import attrs

    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes((tiny_llama.path / name).read_bytes())
    (folder / "model.safetensors").write_bytes(b"\0" * 64)
    record = attrs.evolve(tiny_llama, path=folder)
    engine = MlxEngine(record, Generation(), TextTokenizer.load(folder))
    with pytest.raises(ModelLoadFailed, match="llama"):
        engine.load()


def test_greedy_is_greedy(tiny: MlxEngine) -> None:
    assert GREEDY.temperature == 0
    driver = Driver(tiny)
    same = [driver.submit(PROMPTS[2], Sampling(temperature=0, seed=seed, top_p=0.5)) for seed in (1, 2)]
    driver.run()
    assert driver.sequences[same[0]].ids == driver.sequences[same[1]].ids


def test_short_prompts_beside_a_running_row_share_a_pass_if_little_of_it_is_padding(
    tiny_llama: ModelRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = loaded(tiny_llama)
    driver = Driver(engine)
    running = driver.submit(PROMPTS[0], stopping=Stopping(max_tokens=40, ignore_eos=True))
    driver.run_until(running, 2)
    shapes: list[tuple[int, ...]] = []
    model = engine._prompts._model

    def noting(tokens: mx.array, cache: Any) -> Any:
        shapes.append(tuple(tokens.shape))
        return model(tokens, cache=cache)

    monkeypatch.setattr(engine._prompts, "_model", noting)
    alike = [PROMPTS[2], [*PROMPTS[2][1:], 9]]
    unlike = [PROMPTS[1], PROMPTS[3]]
    ids = [driver.submit(prompt) for prompt in alike]
    driver.run_until(ids[0], 1)
    more = [driver.submit(prompt) for prompt in unlike]
    driver.run()
    width = len(PROMPTS[2]) - 1
    assert shapes == [(2, width), (1, len(PROMPTS[1]) - 1), (1, len(PROMPTS[3]) - 1)]
    assert driver.ids([*ids, *more]) == [mlx_lm_greedy(engine, prompt, 8)[0] for prompt in [*alike, *unlike]]
    engine.close()
