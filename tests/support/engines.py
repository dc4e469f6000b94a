"""Loaded MLX engines, and mlx-lm's own answers to compare theirs with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step

from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.actors.models.tokenizer import TextTokenizer
from mlx_serving.config.schema import Generation


def loaded(record: ModelRecord, settings: Generation | None = None, draft: ModelRecord | None = None) -> MlxEngine:
    engine = MlxEngine(record, settings or Generation(max_rows=8), TextTokenizer.load(record.path), draft=draft)
    engine.load()
    return engine


def mlx_lm_greedy(engine: MlxEngine, prompt: Sequence[int], tokens: int) -> tuple[list[int], list[Any]]:
    """mlx-lm's greedy tokens on the engine's own weights, and the log-probabilities [vocabulary] of each."""
    steps = list(generate_step(mx.array(list(prompt)), engine._model, max_tokens=tokens))
    return [int(token) for token, _ in steps], [logprobs for _, logprobs in steps]
