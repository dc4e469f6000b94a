"""Attention by plain operations: the same as fused attention, for every kind of pass that takes several tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import KVCache
from support.eager import eager
from support.engine_driver import GREEDY, Driver
from support.tiny_models import make_tiny_model

from mlx_serving.actors.generation.mlx_engine import composed_attention
from mlx_serving.actors.generation.mlx_engine.draft_model import _CHUNK, load_draft
from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine
from mlx_serving.actors.messages.values import Stopping
from mlx_serving.actors.models.tokenizer import TextTokenizer
from mlx_serving.config.schema import Generation, PrefixCache, Speculation

PROMPTS = [[1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4], [9, 8, 7] * 30, list(range(100, 160))]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens a row of each layer's attention by plain operations."""
    found: list[int] = []
    inner = composed_attention._composed

    def counted(queries: mx.array, *rest: Any) -> mx.array:
        found.append(queries.shape[2])
        return inner(queries, *rest)

    monkeypatch.setattr(composed_attention, "_composed", counted)
    return found


@pytest.fixture(autouse=True)
def chosen() -> Iterator[None]:
    composed_attention.choose("on")
    yield
    composed_attention.choose("auto")


def drawn(*shape: int, seed: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


@given(
    rows=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    shared=st.integers(1, 4),
    tokens=st.integers(1, 9),
    before=st.integers(0, 20),
)
@settings(deadline=None, max_examples=60)
def test_a_causal_pass_gives_what_fused_attention_gives(
    rows: int, kv_heads: int, shared: int, tokens: int, before: int
) -> None:
    queries = drawn(rows, kv_heads * shared, tokens, 16, seed=1)
    keys, values = (drawn(rows, kv_heads, before + tokens, 16, seed=seed) for seed in (2, 3))
    mask = "causal" if tokens > 1 else None
    expected = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=0.3, mask=mask)
    found = composed_attention.attention(queries, keys, values, 0.3, mask)
    assert mx.allclose(found, expected, atol=1e-5)


def test_a_mask_of_each_row_is_kept_to() -> None:
    queries, keys, values = drawn(2, 4, 3, 16, seed=1), drawn(2, 2, 9, 16, seed=2), drawn(2, 2, 9, 16, seed=3)
    ends = mx.array([4, 6])[:, None] + mx.arange(3)
    mask = (mx.arange(9) <= ends[..., None])[:, None]
    expected = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=0.3, mask=mask)
    assert mx.allclose(composed_attention.attention(queries, keys, values, 0.3, mask), expected, atol=1e-5)


def test_half_precision_loses_no_more_than_its_own_rounding() -> None:
    queries, keys, values = drawn(1, 4, 40, 64, seed=1), drawn(1, 2, 90, 64, seed=2), drawn(1, 2, 90, 64, seed=3)
    halves = [each.astype(mx.bfloat16) for each in (queries, keys, values)]
    exact = mx.fast.scaled_dot_product_attention(
        *(each.astype(mx.float32) for each in halves), scale=1.0, mask="causal"
    )
    found = composed_attention.attention(halves[0], halves[1], halves[2], 1.0, "causal")
    assert found.dtype == mx.bfloat16
    assert mx.allclose(found.astype(mx.float32), exact, rtol=2**-7, atol=2**-9)


def test_too_many_scores_are_left_to_fused_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> mx.array:
        raise AssertionError("the scores do not fit")

    monkeypatch.setattr(composed_attention, "_composed", refuse)
    monkeypatch.setattr(composed_attention, "_MOST_SCORES", 4 * 3 * 9 - 1)
    queries, keys = drawn(1, 4, 3, 16, seed=1), drawn(1, 2, 9, 16, seed=2)
    expected = mx.fast.scaled_dot_product_attention(queries, keys, keys, scale=1.0, mask="causal")
    assert mx.allclose(composed_attention.attention(queries, keys, keys, 1.0, "causal"), expected)


def test_caches_that_are_not_plain_stay_with_the_model() -> None:
    plain, quantised = KVCache(), KVCache().to_quantized(32, 8)  # type: ignore[no-untyped-call]
    seen: list[list[type]] = []

    def model(tokens: mx.array, cache: list[object]) -> None:
        seen.append([type(layer) for layer in cache])

    around = composed_attention.around(model)
    around(mx.zeros((1, 2)), cache=[plain, plain])
    around(mx.zeros((1, 2)), cache=[plain, quantised])
    composed_attention.choose("off")
    around(mx.zeros((1, 2)), cache=[plain, plain])
    assert seen == [[composed_attention.ChunkLayer] * 2, [KVCache, type(quantised)], [KVCache, KVCache]]


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_answers_are_those_of_fused_attention(architecture: str, tmp_path: Path, passes: list[int]) -> None:
    """In chunks, several prompts in a pass, behind a cached prefix, and with proposals checked."""
    record = make_tiny_model(tmp_path / "model", architecture)
    answers = {}
    ways: tuple[Literal["off", "on"], ...] = ("off", "on")
    for way in ways:
        chosen = Generation(
            max_rows=4,
            composed_attention=way,
            in_place_attention="off",
            native_kernels=False,
            prefix_cache=PrefixCache(block_tokens=16),
            speculation=Speculation(mode="lookup", max_tokens=4),
        )
        engine = MlxEngine(record, chosen, TextTokenizer.load(record.path))
        engine.load()
        eager(engine)
        driver = Driver(engine)
        stopping = Stopping(max_tokens=24, ignore_eos=True)
        first = [driver.submit(prompt, GREEDY, stopping) for prompt in PROMPTS]
        driver.run()
        again = [driver.submit([*prompt, 5, 6, 7], GREEDY, stopping) for prompt in PROMPTS]
        driver.run()
        answers[way] = driver.ids([*first, *again])
        assert bool(passes) is (way == "on")
        engine.close()
    assert answers["on"] == answers["off"]


def test_what_a_prompt_costs_a_draft_model_is_timed_in_the_way_that_prompts_go_in(
    tmp_path: Path, passes: list[int]
) -> None:
    """By fused attention each chunk would count as long as cuDNN takes to prepare for it."""
    record = make_tiny_model(tmp_path / "model", "llama")
    chosen = Generation(native_kernels=False, speculation=Speculation(mode="draft"))
    draft = load_draft(record, record, TextTokenizer.load(record.path), chosen)
    passes.clear()
    draft.measure(monotonic)
    assert set(passes) == {_CHUNK}
