"""mlx-lm as it is: a model of its own, computed by MLX's modules and mlx-lm's functions alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
from mlx_lm.utils import dequantize_model, load_model

from mlx_serving.actors.generation.mlx_engine import attention, loading
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.native.kernels import functions


def stock_model(record: ModelRecord, *, is_dense: bool = False) -> Any:
    """The model as mlx-lm loads it, apart from any engine, in the precision that engines compute in.

    `is_dense`: with its weights unpacked, for which MLX's CPU back end takes many tokens in ten times faster.
    """
    model, _ = load_model(record.path)
    loading.widen(model, record)
    model = dequantize_model(model) if is_dense else model
    mx.eval(model.parameters())
    return model


@contextmanager
def own_functions(model: Any) -> Iterator[None]:
    """Let `model` call mlx-lm's functions, in whose place engines put ours for the whole process."""
    homes = functions._modules(model)
    before = [(home, name, getattr(home, name)) for home in homes for name in functions.OURS if hasattr(home, name)]
    for home, name, function in before:
        setattr(home, name, _theirs(function))
    try:
        yield
    finally:
        for home, name, function in before:
            setattr(home, name, function)


def _theirs(function: Any) -> Any:
    """What stood where an engine put `function`."""
    while function in attention._handing:
        function = function.__wrapped__
    return {ours: theirs for theirs, ours in functions.OURS.values()}.get(function, function)


def logprobs_along(model: Any, said: Sequence[tuple[list[int], list[int]]]) -> list[mx.array]:
    """Of each prompt and answer: log-probabilities [answer, vocabulary] after the prompt with each part of the answer.

    An answer is the greedy one if each of its tokens is the most probable in its row. One pass computes all, which on
    a CPU is many times faster than token by token; sequences are padded at their ends, which no token before sees.
    """
    whole = [[*prompt, *answer[:-1]] for prompt, answer in said]
    longest = max(map(len, whole))
    with own_functions(model):
        logits = model(mx.array([ids + [0] * (longest - len(ids)) for ids in whole]))
        rows = [
            logits[row, len(prompt) - 1 : len(ids)]
            for row, ((prompt, _), ids) in enumerate(zip(said, whole, strict=True))
        ]
        logprobs = [row - mx.logsumexp(row, -1, keepdims=True) for row in rows]
        mx.eval(logprobs)
    return logprobs
