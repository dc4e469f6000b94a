"""What slabs of keys and values take: for the rows that there are, of which admission knows, and at each step."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any, Literal

import attrs
import mlx.core as mx
import pytest
from support.engine_driver import Driver
from support.engines import loaded, mlx_lm_greedy
from support.tiny_models import make_tiny_model

from mlx_serving.actors.generation.mlx_engine import slab_rows
from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine
from mlx_serving.actors.generation.mlx_engine.kv_slabs import SlabGroup
from mlx_serving.actors.generation.mlx_engine.slab_rows import (
    SMALLEST_CAPACITY,
    SlabRows,
    capacity_for,
    close_capacity_for,
)
from mlx_serving.actors.messages.values import Stopping
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.actors.models.tokenizer import TextTokenizer
from mlx_serving.config.schema import Generation, MetalOptimizations, Speculation
from mlx_serving.native import kernels

IN_PLACE = pytest.mark.skipif(kernels.choice.choice != "native", reason="nothing writes to slabs in place")
PROMPT = list(b"so it goes")
FOR_EVER = Stopping(max_tokens=3000, ignore_eos=True)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> ModelRecord:
    """A model whose layers are one operation, where there is such."""
    made = make_tiny_model(tmp_path_factory.mktemp("models") / "llama_4bit", "llama_4bit")
    return attrs.evolve(made, context_length=4096)


def engine_of(record: ModelRecord, **settings: Any) -> MlxEngine:
    return loaded(record, Generation(max_rows=8, speculation=Speculation(mode="off"), **settings))


@pytest.fixture
def engine(record: ModelRecord) -> Iterator[MlxEngine]:
    """Without a memory pool."""
    engine = engine_of(record, metal_optimizations=MetalOptimizations(memory_pool=False))
    yield engine
    engine.close()


def slabs(engine: MlxEngine) -> SlabRows:
    cache = engine._decoding.batch.cache
    assert isinstance(cache, SlabRows)
    return cache


def groups(engine: MlxEngine) -> list[SlabGroup]:
    return slabs(engine)._groups


def shapes(engine: MlxEngine) -> list[tuple[int, int, int]]:
    """Capacity, slots and rows of each group."""
    return [(group.capacity, group.slots, len(group.lengths)) for group in groups(engine)]


@pytest.mark.parametrize("in_place", ["auto", "off"])
def test_the_slabs_of_a_long_row_are_gone_once_it_has_left(record: ModelRecord, in_place: str) -> None:
    engine = engine_of(
        record, in_place_attention=in_place, metal_optimizations=MetalOptimizations(memory_pool_bytes=1 << 20)
    )
    driver = Driver(engine)
    short = driver.submit(PROMPT, stopping=FOR_EVER)
    driver.run_until(short, 3)
    held = slabs(engine).nbytes
    long = driver.submit(PROMPT * 120, stopping=Stopping(max_tokens=4, ignore_eos=True))
    driver.run_until(long, 2)
    assert slabs(engine).nbytes > held
    driver.run_until(long, 4)
    driver.run_until(short, len(driver.sequences[short].ids) + 3)
    assert slabs(engine).nbytes == held
    engine.close()


@IN_PLACE
def test_the_pool_stays_when_its_rows_grow_out_of_it(record: ModelRecord) -> None:
    pool = 1 << 20
    engine = engine_of(record, metal_optimizations=MetalOptimizations(memory_pool_bytes=pool))
    (presized,) = groups(engine)
    driver = Driver(engine)
    driver.submit(PROMPT * 51, stopping=FOR_EVER)
    driver.run_until(0, 20)
    assert slabs(engine).nbytes > pool
    assert presized.lengths == []
    assert groups(engine)[0] is presized
    engine.close()


@IN_PLACE
def test_after_a_step_that_failed_the_pool_is_there_again_once(
    record: ModelRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = loaded(record, Generation(max_rows=8))  # with what speculation holds on to
    (presized,) = groups(engine)
    held, layer = shapes(engine), weakref.ref(presized.layers[0])
    active = mx.get_active_memory()
    driver = Driver(engine)
    rows = [driver.submit([*PROMPT, row], stopping=Stopping(max_tokens=20, ignore_eos=True)) for row in range(2)]
    driver.run_until(rows[0], 5)
    decoding, step = engine._decoding, engine._decoding.step

    def fail_once(*arguments: Any) -> int:
        monkeypatch.setattr(decoding, "step", step)
        raise RuntimeError("the device is out of sorts")

    monkeypatch.setattr(decoding, "step", fail_once)
    del presized
    driver.run()
    engine.rest()
    assert all(driver.sequences[row].end is not None for row in rows)
    assert shapes(engine) == held
    assert layer() is None
    assert mx.get_active_memory() - active < slabs(engine).nbytes // 4
    engine.close()


def test_what_is_used_no_more_stays_as_far_as_the_pool_reaches(record: ModelRecord) -> None:
    engine = engine_of(record)
    driver = Driver(engine)
    short = driver.submit(PROMPT, stopping=FOR_EVER)
    long = driver.submit(PROMPT * 120, stopping=Stopping(max_tokens=4, ignore_eos=True))
    driver.run_until(long, 4)
    driver.run_until(short, len(driver.sequences[short].ids) + 3)
    is_kept = any(capacity > SMALLEST_CAPACITY and not rows for capacity, _, rows in shapes(engine))
    assert is_kept == slabs(engine).writes_in_place
    engine.close()


@pytest.mark.parametrize("in_place", ["auto", "off"])
@pytest.mark.parametrize("tokens", [60, 511, 512, 700, 1500])
def test_admission_is_told_what_room_a_row_is_given(
    record: ModelRecord, in_place: Literal["auto", "off"], tokens: int
) -> None:
    engine = MlxEngine(record, Generation(in_place_attention=in_place), TextTokenizer.load(record.path))
    info, _ = engine.load()
    driver = Driver(engine)
    driver.submit((PROMPT * 200)[:tokens], stopping=FOR_EVER)
    driver.run_until(0, 3)
    room = max(group.capacity for group in groups(engine) if group.lengths)
    assert info.cache_bytes(tokens + 3) == room * info.kv_bytes_per_token
    engine.close()


@pytest.mark.parametrize(("series", "most"), [(capacity_for, 4.0), (close_capacity_for, 2.0)])
def test_the_room_of_a_row_is_within_a_factor_of_its_tokens(series: Any, most: float) -> None:
    rooms = {tokens: series(tokens) for tokens in range(1, 40_000)}
    assert all(tokens <= room for tokens, room in rooms.items())
    assert max(room / tokens for tokens, room in rooms.items() if tokens > SMALLEST_CAPACITY) < most
    assert {series(room) for room in rooms.values()} == set(rooms.values())


def test_close_capacities_are_within_a_quarter_where_rows_are_long() -> None:
    assert max(close_capacity_for(tokens) / tokens for tokens in range(2049, 140_000)) < 1.25


@IN_PLACE
def test_a_group_of_long_rows_that_would_have_to_copy_much_is_left_as_it_is(
    engine: MlxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [(PROMPT * 210)[row : row + 2045] for row in range(5)]
    expected = [mlx_lm_greedy(engine, prompt, 30)[0] for prompt in prompts]
    long = SlabGroup(2560, slabs(engine).form, slabs(engine).templates)
    monkeypatch.setattr(slab_rows, "_MOST_COPIED", long.slot_bytes)
    driver = Driver(engine)
    rows = [driver.submit(prompt, stopping=Stopping(max_tokens=30, ignore_eos=True)) for prompt in prompts]
    driver.run_until(rows[4], 15)
    assert shapes(engine) == [(2560, 2, 2), (2560, 2, 2), (2560, 1, 1)]
    driver.run()
    assert driver.ids(rows) == expected


@pytest.mark.parametrize("kv_type", ["model", "8bit"])
@pytest.mark.parametrize("in_place", ["auto", "off"])
def test_slots_of_rows_that_left_are_given_back_beside_one_that_stays(
    record: ModelRecord, in_place: str, kv_type: str
) -> None:
    engine = engine_of(
        record,
        in_place_attention=in_place,
        kv_type=kv_type,
        metal_optimizations=MetalOptimizations(memory_pool=False),
    )
    driver = Driver(engine)
    alone = driver.submit(PROMPT * 60, stopping=Stopping(max_tokens=40, ignore_eos=True))
    driver.run()
    rows = [driver.submit(PROMPT * 60, stopping=Stopping(max_tokens=tokens, ignore_eos=True)) for tokens in (4,) * 7]
    staying = driver.submit(PROMPT * 60, stopping=Stopping(max_tokens=40, ignore_eos=True))
    driver.run_until(staying, 2)
    assert shapes(engine)[0][1:] == (8, 8)
    driver.run_until(staying, 10)
    assert all(driver.sequences[row].is_over for row in rows)
    assert shapes(engine)[0][1:] == (2, 1)
    driver.run()
    assert driver.sequences[staying].ids == driver.sequences[alone].ids
    engine.close()


@IN_PLACE
def test_a_step_allocates_the_same_whatever_its_rows_have_behind_them(record: ModelRecord) -> None:
    optimizations = MetalOptimizations(blit_queue=False)  # steps one after the other: nothing depends on when one ends
    engine = engine_of(record, metal_optimizations=optimizations)
    taken = [allocated(engine, columns) for columns in (100, 400)]
    layer = groups(engine)[0].layers[0]
    assert 0 < min(taken) <= max(taken) < layer.keys.nbytes
    # MLX frees some of it early or late. Steps that copy what is behind them take 17 kB more at 400 columns.
    assert taken[1] - taken[0] < 10_000
    engine.close()


@IN_PLACE
def test_steps_that_overlap_allocate_little_beside_slabs(record: ModelRecord) -> None:
    engine = engine_of(record)
    taken = [allocated(engine, columns) for columns in (100, 400)]
    layer = groups(engine)[0].layers[0]
    assert max(taken) < layer.keys.nbytes // 4
    engine.close()


def allocated(engine: MlxEngine, columns: int) -> int:
    """Bytes that steps of four rows take at most beside what is held before them, from so many columns on.

    The least of several times: now and then MLX's thread frees what a step is through with only behind the next one.
    """
    driver = Driver(engine)
    rows = [driver.submit([65 + row] * 60, stopping=FOR_EVER) for row in range(4)]
    for row in rows:
        driver.run_until(row, columns - 60)
    mx.synchronize()
    gc.collect()  # nothing that is freed meanwhile may be taken for something of these steps
    # A buffer that is used again can be larger than what it is used for, and counts as it is.
    limit = mx.set_cache_limit(0)
    try:
        mx.clear_cache()
        held = mx.get_active_memory()
        peaks = []
        for _ in range(5):
            mx.reset_peak_memory()
            for _ in range(4):
                driver.step()
            mx.synchronize()
            peaks.append(mx.get_peak_memory())
    finally:
        mx.set_cache_limit(limit)
    assert shapes(engine)[0][2] == 4
    for row in rows:
        engine.cancel(row)
    return min(peaks) - held
