"""Bias and penalties as GPUs compute them, by operations that have nothing to compile, against the CPU's way."""

from __future__ import annotations

import shutil
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_serving.actors.generation.mlx_engine import draw_kernel, penalties
from mlx_serving.actors.generation.mlx_engine.sampling import RowSampling, Sampler
from mlx_serving.actors.messages.values import Sampling

VOCABULARY = 50
WISHES = (
    Sampling(temperature=0.0, repetition_penalty=1.7, frequency_penalty=0.9),
    Sampling(temperature=0.0),
    Sampling(temperature=0.0, presence_penalty=1.5, logit_bias={3: 2.5, 9: -4.0}),
)


def _logits(step: int, *shape: int) -> mx.array:
    return mx.random.normal((len(WISHES), *shape, VOCABULARY), key=mx.random.key(step))


def _said() -> tuple[list[Any], list[Any]]:
    """Tokens of plain steps and of checks of drafts, in turn, and what the penalties know at the end."""
    rows = [RowSampling.begin(each, 0, [1, 2, 2, 7]) for each in WISHES]
    found: list[Any] = []
    sampler = Sampler(rows)
    for step in range(6):
        found.append(sampler(_logits(step)).tolist())
        drafts = mx.array([[4, 4, 9], [1, 2, 3], [3, 3, 3]], dtype=mx.int32)
        tokens = sampler.ahead(_logits(100 + step, 4), drafts)
        found.append(tokens.tolist())
        sampler.advance(tokens, [1 + step % 4, 2, 4])
        if step == 2:
            sampler.release()
            sampler = Sampler(rows)
    sampler.release()
    return found, [tuple(np.array(each) for each in row.history.load(VOCABULARY)) for row in (rows[0], rows[2])]


@pytest.mark.skipif(shutil.which("g++") is None, reason="nothing can compile MLX's fused operations")
def test_both_ways_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_kernel, "_way", "operations")
    tokens, known = _said()
    monkeypatch.setattr(penalties, "is_cpu", lambda: False)
    on_gpu, known_on_gpu = _said()
    assert on_gpu == tokens
    for one, other in zip(known, known_on_gpu, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            np.testing.assert_array_equal(mine, theirs)
