"""What the first requests would wait for on a GPU, done while a model is loaded.

Kernels are compiled there when they are first used, some for seconds, and every stream stands still meanwhile. Two rows
go through what most requests ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx

from mlx_serving.actors.generation.mlx_engine.batch import Batch
from mlx_serving.actors.generation.mlx_engine.row import Row
from mlx_serving.actors.messages.batching import SequenceQueued
from mlx_serving.actors.messages.values import Sampling, Stopping, pack_ids

_PROMPT_TOKENS = 12
_WISHES = (
    Sampling(
        top_k=5,
        top_p=0.9,
        min_p=0.01,
        repetition_penalty=1.1,
        frequency_penalty=0.1,
        logit_bias={1: 1.0},
        logprobs=True,
        top_logprobs=2,
    ),
    Sampling(temperature=0.0),
)
_WIDTH = 3


def sequences(rows: int) -> list[SequenceQueued]:
    """What to rehearse with, at most two; the token ids are any."""
    prompt = pack_ids([1 + place % 5 for place in range(_PROMPT_TOKENS)])
    stopping = Stopping(max_tokens=16, ignore_eos=True)
    return [SequenceQueued(0, "", prompt, sampling, stopping, 0, 0.0) for sampling in _WISHES[:rows]]


def rehearse(batch: Batch, rows: Sequence[Row], fill: Callable[[Row], None], vocab_size: int, drafts: bool) -> None:
    """Decode rows, which are in no batch, by every kind of step. `drafts`: with proposals of a draft model too."""
    for row in rows:
        fill(row)
    batch.join(rows)
    words = (vocab_size + 31) // 32
    for masks in (None, mx.full((len(rows), words), 0xFFFFFFFF, dtype=mx.uint32)):
        batch.sample(batch.forward(), masks).read()
    if batch.cache.can_roll_back:
        width = batch.cache.padded(_WIDTH)
        proposed = mx.zeros((len(rows), width - 1), dtype=mx.int32)
        batch.reserve(2 * width)
        for probabilities in (None, mx.zeros((len(rows), width - 1, vocab_size)))[: 1 + drafts]:
            check = batch.check(proposed, [width - 1] * len(rows), drafted=probabilities)
            check.read()
            batch.settle(check, [1] * len(rows))
    batch.keep([len(rows) - 1])
    batch.sample(batch.forward()).read()
