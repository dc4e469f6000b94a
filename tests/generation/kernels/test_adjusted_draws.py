"""Bias and penalties in the kernel that draws, CUDA's source and Metal's, against what MLX's operations do."""

from __future__ import annotations

from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest
from support.gpu_kernels import Language
from support.shims import Shims

from mlx_serving.actors.generation.mlx_engine import draw_kernel, penalties
from mlx_serving.actors.generation.mlx_engine.sampling import RowSampling, Sampler
from mlx_serving.actors.messages.values import Sampling

VOCABULARY = 333
WISHES = (
    Sampling(temperature=0.0, repetition_penalty=1.7, frequency_penalty=0.9),
    Sampling(temperature=0.0),
    Sampling(temperature=0.0, presence_penalty=1.5, logit_bias={3: 2.5, 9: -4.0}),
    Sampling(temperature=1.0, top_p=0.9, seed=5, frequency_penalty=1.0),
    Sampling(temperature=0.7, top_k=9, seed=6),
    Sampling(temperature=0.0, logit_bias={20: 30.0}),
    Sampling(temperature=1.2, min_p=0.1, seed=7, repetition_penalty=0.5),
)


@pytest.fixture(params=["cuda", "metal"])
def language(request: pytest.FixtureRequest) -> Language:
    return cast(Language, request.param)


@pytest.fixture(autouse=True)
def _on_gpu(shims: Shims, monkeypatch: pytest.MonkeyPatch, language: Language) -> None:
    shims.use(language, monkeypatch)
    monkeypatch.setattr(penalties, "is_cpu", lambda: False)
    # What operations fuse needs a compiler of its own.
    monkeypatch.setattr(mx, "compile", lambda function: function)
    penalties._compiled.cache_clear()


def _logits(step: int, dtype: mx.Dtype, *shape: int) -> mx.array:
    """Multiples of a quarter, which both ways compute with alike; few of them, so that penalties matter."""
    drawn = mx.random.randint(-6, 7, (len(WISHES), *shape, VOCABULARY), key=mx.random.key(step))
    return (drawn / 4).astype(dtype)


def _masks(step: int) -> mx.array:
    return mx.random.randint(0, 2**32, (len(WISHES), -(-VOCABULARY // 32)), mx.uint32, key=mx.random.key(step))


def _said(dtype: mx.Dtype) -> tuple[list[Any], list[Any]]:
    """Tokens of plain steps, free and masked, and of checks of drafts; and what the penalties know at the end."""
    rows = [RowSampling.begin(each, 0, [1, 2, 2, 7]) for each in WISHES]
    found: list[Any] = []
    sampler = Sampler(rows)
    for step in range(9):
        # Two draws of which neither waits for the other, as when a step is set going before the last one is read.
        pair = [sampler(_logits(step, dtype)), sampler(_logits(step, dtype), _masks(step))]
        found += [each.tolist() for each in pair]
        if step % 3 == 1:
            drafts = mx.array([[4, 4, 9]] * len(WISHES), dtype=mx.int32)
            tokens = sampler.ahead(_logits(100 + step, dtype, 4), drafts)
            found.append(tokens.tolist())
            sampler.advance(tokens, [1 + (step + row) % 4 for row in range(len(WISHES))])
        if step % 4 == 3:
            sampler.release()
            sampler = Sampler(rows)
    sampler.release()
    penal = [row for row in rows if penalties._is_penal(row.parameters)]
    return found, [tuple(np.array(each) for each in row.history.load(VOCABULARY)) for row in penal]


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["float32", "bfloat16"])
def test_the_kernel_adjusts_draws_and_counts_as_operations_do(monkeypatch: pytest.MonkeyPatch, dtype: mx.Dtype) -> None:
    said = []
    for way in ("operations", "gpu"):
        monkeypatch.setattr(draw_kernel, "_way", way)
        said.append(_said(dtype))
    (tokens, known), (on_gpu, known_on_gpu) = said
    assert on_gpu == tokens
    for mine, theirs in zip(known_on_gpu, known, strict=True):
        np.testing.assert_array_equal(mine[0], theirs[0])
        np.testing.assert_array_equal(mine[1], theirs[1])


def test_a_row_that_is_not_finite_says_so_and_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_kernel, "_way", "gpu")
    rows = [RowSampling.begin(each, 0, [1]) for each in (WISHES[0], WISHES[3])]
    sampler = Sampler(rows)
    odd = mx.array(np.full((2, VOCABULARY), np.nan, dtype=np.float32))
    assert sampler(odd).tolist() == [-1, -1]
    sampler.release()
    for row in rows:
        counts, seen = row.history.load(VOCABULARY)
        assert (mx.sum(counts).item(), np.flatnonzero(np.array(seen)).tolist()) == (0.0, [1])


def test_drawn_tokens_are_counted_once_though_a_draw_is_built_before_the_last_is_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(draw_kernel, "_way", "gpu")
    row = RowSampling.begin(WISHES[0], 0, [1])
    sampler = Sampler([row])
    drawn = [sampler(_logits(step, mx.float32)[:1]) for step in range(6)]
    sampler.release()
    counts, _ = row.history.load(VOCABULARY)
    assert mx.sum(counts).item() == len(drawn)
    for tokens in drawn:
        assert float(counts[tokens].item()) >= 1  # type: ignore[arg-type]
