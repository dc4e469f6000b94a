"""Prompts in compiled chunks, with CUDA's kernels run by g++, against the model itself."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx_lm.models.llama  # whose functions are to be compiled
import mlx_lm.utils
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.models.cache import KVCache
from support.gpu_kernels import HAS_COMPILER
from support.shims import Shims, forget

from mlx_serving.actors.generation.mlx_engine import attention_kernels, chunk_attention, chunk_program
from mlx_serving.actors.generation.mlx_engine.chunk_program import (
    WIDTHS,
    ChunkProgram,
    chunk_program_for,
    passes,
    within,
)
from mlx_serving.actors.generation.mlx_engine.slab_pass import InPlace
from mlx_serving.actors.generation.mlx_engine.slab_rows import SlabRows, rows_cache_for

MODEL = {
    "model_type": "llama",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "vocab_size": 64,
    "tie_word_embeddings": True,
}


@given(st.integers(0, 10_000))
def test_passes_take_every_token_and_few_places_more(tokens: int) -> None:
    parts = passes(tokens)
    assert sum(parts) == tokens
    assert all(part in WIDTHS for part in parts[:-1])
    places = sum(min(width for width in WIDTHS if width >= part) for part in parts)
    assert places <= 1.5 * tokens + 128


@given(st.integers(1, 4096), st.integers(0, 4096))
def test_a_pass_beside_rows_that_decode_takes_half_of_what_it_may_or_more(budget: int, tokens: int) -> None:
    count = within(budget, tokens)
    assert passes(count) == ([count] if count else [])
    assert 2 * count >= min(budget, tokens, 2 * WIDTHS[-1])
    assert count <= min(budget, tokens)


@pytest.fixture
def cuda(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not HAS_COMPILER:
        pytest.skip("there is no g++")
    Shims(tmp_path_factory.mktemp("kernels")).use("cuda", monkeypatch)
    # What runs a kernel here reads its inputs, which nothing that is being traced has.
    monkeypatch.setattr(mx, "compile", lambda function: function)
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    yield
    forget()


def small_model() -> Any:
    model_class, arguments = mlx_lm.utils._get_classes(MODEL)
    mx.random.seed(5)
    model = model_class(arguments.from_dict(MODEL))
    model.set_dtype(mx.bfloat16)
    mx.eval(model.parameters())
    return model


def rows_for(model: Any) -> SlabRows:
    rows, _ = rows_cache_for(model, in_place="on", compiles=True)
    assert isinstance(rows, SlabRows)
    return rows


def wide(array: mx.array) -> Any:
    return np.array(array.astype(mx.float32))


def reference(model: Any, ids: list[int]) -> tuple[Any, list[Any]]:
    """Logits after a prompt, and its caches, by the model itself."""
    caches: list[Any] = [KVCache() for _ in model.layers]  # type: ignore[no-untyped-call]
    logits = model(mx.array([ids]), cache=caches)[:, -1]
    return wide(logits), caches


@pytest.mark.usefixtures("cuda")
def test_chunks_of_any_size_fill_the_caches_of_a_row() -> None:
    model = small_model()
    program = chunk_program_for(model, rows_for(model))
    assert program is not None
    ids = [(7 * place) % 64 for place in range(75)]
    caches = program.new_caches()
    for start, stop in ((0, 20), (20, 21), (21, 70)):
        program.fill(ids[start:stop], caches, len(ids))
        assert caches[0].offset == stop
    found = program.fill_all(ids[70:], caches, len(ids))
    expected, plain = reference(model, ids)
    np.testing.assert_allclose(wide(found), expected, atol=0.05 * np.abs(expected).max())
    for cache, wanted in zip(caches, plain, strict=True):
        assert cache.keys.shape[2] == 512
        for side, like in ((cache.keys, wanted.keys), (cache.values, wanted.values)):
            limit = 0.05 * np.abs(wide(like)).max()
            np.testing.assert_allclose(wide(side)[:, :, :75], wide(like)[:, :, :75], atol=limit)


@pytest.mark.usefixtures("cuda")
def test_it_goes_on_behind_a_cached_prefix_and_joins_rows_that_decode() -> None:
    model = small_model()
    rows = rows_for(model)
    program = chunk_program_for(model, rows)
    assert program is not None
    ids = [(5 * place) % 64 for place in range(40)]
    _, caches = reference(model, ids[:24])
    program.fill(ids[24:39], caches, len(ids))
    _, others = reference(model, [9, 8, 7])
    _, third = reference(model, [1, 2])
    rows.join([caches, others, third])
    found = wide(rows.forward(mx.array([[ids[39]], [6], [3]])))[:, -1]
    for logits, prompt in zip(found, (ids, [9, 8, 7, 6], [1, 2, 3]), strict=True):
        expected = reference(model, prompt)[0][0]
        np.testing.assert_allclose(logits, expected, atol=0.05 * np.abs(expected).max())


@pytest.mark.usefixtures("cuda")
def test_rows_of_several_groups_are_made_up_to_what_is_compiled() -> None:
    model = small_model()
    rows = rows_for(model)
    rows.presize(1 << 20, 3)
    rows.rehearse(3, 4096)
    assert not rows.lengths
    prompts = [[4, 5, 6], [(3 * place) % 64 for place in range(530)], [1, 2]]
    order = rows.join([reference(model, ids)[1] for ids in prompts])
    found = wide(rows.forward(mx.array([[prompts[row][-1]] for row in order])))[:, -1]
    for row, logits in zip(order, found, strict=True):
        expected = reference(model, [*prompts[row], prompts[row][-1]])[0][0]
        np.testing.assert_allclose(logits, expected, atol=0.05 * np.abs(expected).max())


@pytest.mark.usefixtures("cuda")
def test_a_device_on_which_it_fails_or_is_wrong_goes_without(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    rows = rows_for(model)
    blind = chunk_attention._SOURCE.replace("column < before ? old_", "false ? old_")
    for source in ("this is no kernel", chunk_attention._SOURCE.replace("* scale[0]", ""), blind):
        assert source != chunk_attention._SOURCE
        chunk_attention._kernel.cache_clear()
        monkeypatch.setattr(chunk_attention, "_SOURCE", source)
        assert chunk_program_for(model, rows) is None


@pytest.mark.usefixtures("cuda")
def test_rehearsing_tells_what_chunks_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    program = chunk_program_for(model, rows_for(model))
    assert isinstance(program, ChunkProgram)
    monkeypatch.setattr(chunk_program, "_REHEARSED_WIDTHS", (16, 32))
    ticks = itertools.count()
    costs = program.rehearse(lambda: float(next(ticks)), 1000)
    assert costs == [(16, 1.0), (32, 1.0)] * 2


def test_other_models_go_without() -> None:
    model = small_model()
    rows, _ = rows_cache_for(model)
    assert chunk_program_for(model, rows) is None


def test_what_is_held_at_rest_is_slabs_of_short_rows_first() -> None:
    model = small_model()
    rows, _ = rows_cache_for(model)
    assert isinstance(rows, SlabRows)
    rows.program.kernel = InPlace(attention_kernels.attend_in_place, 16)
    rows.presize(1 << 30, 4)
    short = rows.nbytes
    rows.join([reference(model, [(3 * place) % 64 for place in range(count)])[1] for count in (5, 600)])
    assert rows.nbytes > short
    rest = rows.emptied(rows.nbytes - 1)
    assert (rest.nbytes, rest.lengths) == (short, [])
    assert rest.fresh().emptied(short // 2).nbytes == short // 2
