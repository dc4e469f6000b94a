"""What rows of an engine take from the prefix cache and leave in it, on small random models."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
import pytest
from support.engine_driver import Driver, replace_model
from support.engines import loaded, mlx_lm_greedy
from support.tiny_models import EOS, make_tiny_model

from mlx_serving.actors.generation.mlx_engine import cache_tensors, prefix_cache, prefix_disk
from mlx_serving.actors.generation.mlx_engine.cache_parts import KvBlock
from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine
from mlx_serving.actors.generation.mlx_engine.prefix_cache import PrefixCache as PrefixStore
from mlx_serving.actors.generation.mlx_engine.prefix_disk import Returned
from mlx_serving.actors.generation.prefix.disk import Fetch
from mlx_serving.actors.generation.prefix.disk_index import DiskIndex
from mlx_serving.actors.messages.values import Stopping
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.config.schema import Generation, PrefixCache

TEXT = list(b"a long prompt that is worth keeping, as it is said again and again and never the same")
EXACT = ("mamba2", "gemma3_text", "qwen3_next")
"""Models of which some layers are good for one exact prefix only."""


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ModelRecord]:
    """A small model by its architecture, made at the first call."""
    folder = tmp_path_factory.mktemp("models")

    def record(name: str) -> ModelRecord:
        if not (folder / name).exists():
            made[name] = attrs.evolve(make_tiny_model(folder / name, name), context_length=4096)
        return made[name]

    made: dict[str, ModelRecord] = {}
    return record


@contextmanager
def running(record: ModelRecord, **cache: Any) -> Iterator[tuple[MlxEngine, Driver]]:
    """An engine with these settings of its prefix cache."""
    engine = loaded(record, Generation(max_rows=8, prefix_cache=PrefixCache(**cache)))
    try:
        yield engine, Driver(engine)
    finally:
        engine.close()


def say(driver: Driver, prompt: Sequence[int], **fields: Any) -> tuple[list[int], int]:
    """The answer to a prompt, and how many of its tokens were cached."""
    said = driver.submit(prompt, **fields)
    driver.run()
    end = driver.sequences[said].end
    assert end is not None, driver.sequences[said].error
    return driver.sequences[said].ids, end.cached_tokens


def test_a_prompt_is_cached_up_to_its_last_token_and_an_answer_as_far_as_it_was_fed(
    records: Callable[[str], ModelRecord],
) -> None:
    with running(records("llama")) as (engine, driver):
        answer, cached = say(driver, TEXT)
        assert cached == 0
        assert say(driver, TEXT) == (answer, len(TEXT) - 1)
        turn = [*TEXT, *answer, *b"and what then?"]
        assert say(driver, turn) == (mlx_lm_greedy(engine, turn, 8)[0], len(TEXT) + len(answer) - 1)
        assert say(driver, [*TEXT[:40], 1, 2, 3])[1] == 40
        stats = engine.cache_stats()
        assert (stats.lookups, stats.hits) == (4, 3)
        assert stats.hit_tokens == 2 * len(TEXT) - 1 + len(answer) - 1 + 40


@pytest.mark.parametrize("name", EXACT)
def test_exact_states_are_kept_where_messages_and_the_prompt_and_the_answer_end(
    records: Callable[[str], ModelRecord], name: str
) -> None:
    system, user = TEXT * 2, TEXT[:70]
    with running(records(name)) as (engine, driver):
        answer, cached = say(driver, [*system, *user], segments=(len(system), len(system) + len(user)))
        assert cached == 0
        other = [*system, *b"something else is asked this time"]
        assert say(driver, other, segments=(len(system),)) == (mlx_lm_greedy(engine, other, 8)[0], len(system))
        turn = [*system, *user, *answer, *b"and what then?"]
        said, cached = say(driver, turn)
        assert said == mlx_lm_greedy(engine, turn, 8)[0]
        assert cached in (len(turn) - len(b"and what then?") - 1, len(turn) - len(b"and what then?"))
        assert say(driver, turn) == (said, len(turn) - 1)


def test_ten_turns_of_a_chat_compute_only_what_is_new(records: Callable[[str], ModelRecord]) -> None:
    conversation: list[int] = []
    with running(records("llama"), block_tokens=64) as (engine, driver):
        for turn in range(10):
            known = len(conversation)
            conversation = [*conversation, *TEXT, turn]
            answer, cached = say(driver, conversation)
            assert cached == max(0, known - 1)
            conversation = [*conversation, *answer]
        assert engine.cache_stats().tokens == len(conversation) - 1


def test_salts_and_short_prefixes_are_not_shared(records: Callable[[str], ModelRecord]) -> None:
    with running(records("llama")) as (_, driver):
        answer, _ = say(driver, TEXT, cache_salt="one")
        assert say(driver, TEXT, cache_salt="two") == (answer, 0)
        assert say(driver, TEXT) == (answer, 0)
        assert say(driver, TEXT, cache_salt="one") == (answer, len(TEXT) - 1)
        assert say(driver, [*TEXT[:15], 1, 2])[1] == 0


def test_choices_of_one_prompt_wait_for_the_first_of_them(records: Callable[[str], ModelRecord]) -> None:
    prompt = TEXT * 5
    with running(records("llama")) as (engine, driver):
        said = [driver.submit(prompt, index=index) for index in range(3)]
        prefilled = sum(report.prefill_tokens for report in driver.run())
        assert prefilled == len(prompt) - 1
        assert driver.ids(said) == [mlx_lm_greedy(engine, prompt, 8)[0]] * 3


def test_a_cancelled_row_leaves_what_it_said(records: Callable[[str], ModelRecord]) -> None:
    with running(records("llama")) as (engine, driver):
        cancelled = driver.submit(TEXT, stopping=Stopping(max_tokens=50, ignore_eos=True))
        driver.run_until(cancelled, 6)
        engine.cancel(cancelled)
        driver.run()
        said = driver.sequences[cancelled].ids
        assert say(driver, [*TEXT, *said, 1])[1] >= len(TEXT) + len(said) - 1


def test_rows_that_end_in_a_batch_leave_what_they_said(records: Callable[[str], ModelRecord]) -> None:
    prompts = [[*TEXT[start:], *TEXT] for start in range(0, 50, 10)]
    for name in ("llama", *EXACT):
        with running(records(name)) as (_, driver):
            said = [
                driver.submit(prompt, stopping=Stopping(max_tokens=4 + 3 * place, ignore_eos=True))
                for place, prompt in enumerate(prompts)
            ]
            driver.run()
            for prompt, answer in zip(prompts, driver.ids(said), strict=True):
                turn = [*prompt, *answer, *b" and more"]
                assert say(driver, turn)[1] >= len(prompt) + len(answer) - 1, name


def test_an_answer_that_ended_by_itself_is_cached_with_its_last_token(records: Callable[[str], ModelRecord]) -> None:
    for name in ("llama", *EXACT):
        with running(records(name)) as (_, driver):
            answer, _ = say(driver, TEXT)
            stop = Stopping(max_tokens=8, stop_token_ids=(answer[5],), ignore_eos=True)
            ended, _ = say(driver, TEXT, stopping=stop)
            assert len(ended) <= 5
            assert say(driver, [*TEXT, *answer[: len(ended) + 1], EOS, 1])[1] == len(TEXT) + len(ended) + 1, name


def test_the_bound_holds_and_the_least_recently_used_goes(records: Callable[[str], ModelRecord]) -> None:
    limit = 60_000
    with running(records("llama"), bytes=limit, block_tokens=32) as (engine, driver):
        say(driver, TEXT)
        for number in range(12):
            say(driver, [number, *TEXT])
            assert say(driver, TEXT)[1] == len(TEXT) - 1
            assert engine.cache_stats().bytes <= limit
        assert engine.cache_stats().evicted > 0
        assert say(driver, [11, *TEXT])[1] == len(TEXT)
        assert say(driver, [0, *TEXT])[1] < len(TEXT)
        long = TEXT * 12
        answer, _ = say(driver, long)
        assert engine.cache_stats().bytes <= limit
        again, cached = say(driver, long)
        assert again == answer
        assert 0 < cached < len(long) - 1


def active_memory() -> int:
    """Once nothing is under way any more."""
    mx.synchronize()
    return mx.get_active_memory()


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_what_is_kept_takes_the_memory_it_is_counted_with(records: Callable[[str], ModelRecord], name: str) -> None:
    with running(records(name)) as (engine, driver):
        say(driver, TEXT)
        engine.clear_cache("memory")
        before = active_memory()
        for number in range(10):
            say(driver, [number, *TEXT * 4], segments=(100, 200))
        held = active_memory() - before
        engine.clear_cache("memory")
        assert active_memory() - before < held / 10
        assert engine.cache_stats().bytes == 0
        assert held < 4_000_000


def test_a_warm_prompt_is_prefilled_into_the_cache_and_says_nothing(records: Callable[[str], ModelRecord]) -> None:
    with running(records("llama")) as (_, driver):
        assert say(driver, TEXT, stopping=Stopping(max_tokens=0)) == ([], 0)
        assert say(driver, TEXT, stopping=Stopping(max_tokens=0)) == ([], len(TEXT) - 1)
        assert say(driver, [*TEXT, 1])[1] == len(TEXT) - 1


def test_whole_blocks_of_a_prompt_are_kept_on_the_way(records: Callable[[str], ModelRecord]) -> None:
    engine = loaded(
        records("llama"), Generation(max_rows=8, prefill_tokens=8, prefix_cache=PrefixCache(block_tokens=16))
    )
    driver = Driver(engine)
    running = driver.submit([1, 2, 3], stopping=Stopping(max_tokens=200, ignore_eos=True))
    driver.run_until(running, 2)
    given_up = driver.submit(TEXT)
    for _ in range(6):
        driver.step()
    engine.cancel(given_up)
    assert not driver.sequences[given_up].ids
    assert say(driver, TEXT)[1] == 48
    engine.close()


def test_without_the_cache_nothing_is_kept(records: Callable[[str], ModelRecord]) -> None:
    with running(records("llama"), enabled=False) as (engine, driver):
        assert say(driver, TEXT)[0] == say(driver, TEXT)[0]
        assert not engine.cache_stats().enabled
        assert engine.held_prefixes() is None


def test_a_cache_that_fails_is_given_up_and_no_row_fails_for_it(
    records: Callable[[str], ModelRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    for method in ("lookup", "store"):
        with running(records("llama")) as (engine, driver):

            def fail(*_: object, **__: object) -> None:
                raise MemoryError("no room")

            expected = mlx_lm_greedy(engine, TEXT, 8)[0]
            monkeypatch.setattr(PrefixStore, method, fail)
            assert say(driver, TEXT) == say(driver, TEXT) == (expected, 0)
            assert not engine.cache_stats().enabled
            monkeypatch.undo()


def test_a_copy_from_disk_that_fails_is_given_up_and_no_row_fails_for_it(
    records: Callable[[str], ModelRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(records("llama"), directory=str(tmp_path)) as (engine, driver):
        expected, _ = say(driver, TEXT)
        disk = engine._reuse._cache._disk  # type: ignore[union-attr]
        disk._brought.append((mx.zeros(1), None))  # type: ignore[union-attr, arg-type]

        def fail(*_: object) -> None:
            raise MemoryError("no room")

        monkeypatch.setattr(mx, "eval", fail)
        engine._reuse.turn()
        monkeypatch.undo()
        assert not engine.cache_stats().enabled
        assert say(driver, TEXT) == (expected, 0)


class Poisoned:
    """A model whose next tokens are not finite."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, *arguments: Any, **options: Any) -> mx.array:
        logits: mx.array = self._model(*arguments, **options)
        return logits * float("nan")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def test_a_prompt_whose_output_is_not_finite_is_forgotten(records: Callable[[str], ModelRecord]) -> None:
    with running(records("llama")) as (engine, driver):
        model = engine._model
        answer, _ = say(driver, TEXT)
        replace_model(engine, Poisoned(model))
        failed = driver.submit([*TEXT, 1, 2, 3])
        driver.run()
        error = driver.sequences[failed].error
        assert error is not None
        assert "finite" in error.message
        replace_model(engine, model)
        assert say(driver, TEXT) == (answer, 0)


def test_arrays_reach_the_host_by_one_transfer_where_it_cannot_read_them(
    records: Callable[[str], ModelRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_tensors, "has_memory_apart", lambda: True)
    for name in ("llama", "qwen3_next"):
        kept = {"directory": str(tmp_path / name)}
        with running(records(name), **kept) as (_, driver):
            answer, _ = say(driver, TEXT)
        with running(records(name), **kept) as (engine, driver):
            assert say(driver, TEXT) == (answer, len(TEXT) - 1)
            assert engine.cache_stats().disk_hit_tokens == len(TEXT) - 1
            assert not engine._reuse._cache._disk._brought  # type: ignore[union-attr]


def test_memory_that_is_copied_from_stays_until_a_step_has_gone_by(
    records: Callable[[str], ModelRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_tensors, "has_memory_apart", lambda: True)
    monkeypatch.setattr(prefix_disk, "_STAGE_BYTES", 1 << 20)
    kept = {"directory": str(tmp_path)}
    with running(records("llama"), **kept) as (_, driver):
        answer, _ = say(driver, TEXT)
    with running(records("llama"), **kept) as (engine, driver):
        disk = engine._reuse._cache._disk  # type: ignore[union-attr]
        assert disk is not None
        disk._staging.join()
        stage, inner, held = disk._stage, disk.returned, []
        assert stage is not None

        def returned(prefetch: Fetch) -> Returned:
            found = inner(prefetch)
            gc.collect()
            held.append(stage.take(1 << 20))
            return found

        monkeypatch.setattr(disk, "returned", returned)
        assert say(driver, TEXT) == (answer, len(TEXT) - 1)
        assert held == [None]
        gc.collect()
        assert stage.take(1 << 20) is not None


def test_numbers_of_every_type_come_back_as_they_were() -> None:
    for dtype in (mx.float32, mx.float16, mx.bfloat16, mx.uint32, mx.int32, mx.uint8, mx.bool_):
        array = mx.arange(24).reshape(1, 2, 3, 4).astype(dtype)
        tensors, note = cache_tensors.block_tensors(KvBlock(((array,), (array[:, :1],)), 0))
        (first,), (second,) = cache_tensors.read_block(tensors, note)
        assert first.dtype == second.dtype == dtype
        assert mx.array_equal(first, array)
        assert mx.array_equal(second, array[:, :1])


@pytest.mark.parametrize("name", ["llama", *EXACT])
def test_a_restarted_engine_reads_what_another_one_wrote(
    records: Callable[[str], ModelRecord], tmp_path: Path, name: str
) -> None:
    prompt, cut = [*TEXT * 3], 200
    kept = {"directory": str(tmp_path / "prefix"), "block_tokens": 64}
    with running(records(name), **kept) as (_, driver):
        answer, _ = say(driver, prompt, segments=(cut,))
    with running(records(name), **kept) as (engine, driver):
        assert say(driver, prompt) == (answer, len(prompt) - 1)
        assert engine.cache_stats().disk_hit_tokens == len(prompt) - 1
        other = [*prompt[:cut], *b"another end"]
        assert say(driver, other) == (mlx_lm_greedy(engine, other, 8)[0], cut)
        engine.clear_cache("disk")
        assert engine.cache_stats().disk_entries == 0
        assert say(driver, prompt)[1] == len(prompt) - 1
    assert list((tmp_path / "prefix").rglob("*.safetensors")) == []


def test_what_one_pass_of_a_gpu_takes_is_not_looked_for_on_disk(
    records: Callable[[str], ModelRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {"directory": str(tmp_path / "prefix")}
    with running(records("llama"), **kept) as (_, driver):
        answer, _ = say(driver, TEXT)
    monkeypatch.setitem(prefix_cache._LEAST_FROM_DISK, "cpu", len(TEXT))
    with running(records("llama"), **kept) as (_, driver):
        assert say(driver, TEXT) == (answer, 0)
    with running(records("llama"), **kept) as (engine, driver):
        assert say(driver, [*TEXT, *TEXT])[1] == engine.cache_stats().disk_hit_tokens == len(TEXT)


@pytest.mark.parametrize("name", ["gemma3_text", "qwen3_next"])
def test_blocks_are_of_no_use_without_the_state_behind_them(
    records: Callable[[str], ModelRecord], tmp_path: Path, name: str
) -> None:
    prompt = TEXT * 3
    kept = {"directory": str(tmp_path / "prefix"), "block_tokens": 64}
    with running(records(name), **kept) as (_, driver):
        answer, _ = say(driver, prompt)
    with closing(DiskIndex(tmp_path / "prefix")) as index:
        (model,) = (path.name for path in (tmp_path / "prefix").iterdir() if path.is_dir())
        states = [each.stored.name for each in index.of_model(model) if each.is_state]
    assert states
    for each in states:
        (tmp_path / "prefix" / model / each).write_bytes(b"")
    with running(records(name), **kept) as (engine, driver):
        assert say(driver, prompt) == (answer, 0)
        assert engine.cache_stats().disk_hit_tokens == 0
        assert engine.cache_stats().dropped > 0


@pytest.mark.parametrize("damage", ["truncated", "changed", "foreign"])
def test_a_damaged_file_is_counted_and_its_tokens_are_computed(
    records: Callable[[str], ModelRecord], tmp_path: Path, damage: str
) -> None:
    prompt = TEXT * 3
    kept = {"directory": str(tmp_path / "prefix"), "block_tokens": 64}
    with running(records("llama"), **kept) as (_, driver):
        answer, _ = say(driver, prompt)
    files = sorted((tmp_path / "prefix").rglob("*.safetensors"))
    for file in files:
        content = file.read_bytes()
        if damage == "truncated":
            file.write_bytes(content[:-100])
        elif damage == "changed":
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        else:
            file.write_bytes(content[::-1])
    with running(records("llama"), **kept) as (engine, driver):
        assert say(driver, prompt) == (answer, 0)
        assert engine.cache_stats().dropped > 0
        assert say(driver, prompt) == (answer, len(prompt) - 1)
