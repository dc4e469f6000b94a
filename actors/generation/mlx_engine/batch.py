"""The rows that decode together, one forward pass for all of them a step.

A step is built as a graph, then set going, then read, each when its caller says: so the next one can be on its way
while the last one's tokens are handled, and masks can be made while the forward pass runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import mlx.core as mx

from mlx_serving.actors.generation.mlx_engine import caches as prompt_caches
from mlx_serving.actors.generation.mlx_engine.adapters import Adapters
from mlx_serving.actors.generation.mlx_engine.caches import Caches
from mlx_serving.actors.generation.mlx_engine.logprobs import Logprobs, logprobs_of, wanted_logprobs
from mlx_serving.actors.generation.mlx_engine.row import Reading, Row
from mlx_serving.actors.generation.mlx_engine.rows_cache import Order, RowsCache
from mlx_serving.actors.generation.mlx_engine.sampling import Sampler
from mlx_serving.actors.messages.values import Sampling


@attrs.frozen(eq=False)
class Step:
    """A step of these rows. `tokens` [rows] is -1 where the logits were not finite."""

    rows: tuple[Row, ...]
    tokens: mx.array
    logprobs: Logprobs | None

    def start(self) -> None:
        """Set it going; does not wait."""
        prompt_caches.start([self.tokens, self.logprobs.arrays if self.logprobs is not None else []])

    def read(self) -> list[tuple[Row, Reading]]:
        """Wait for the step and read its tokens."""
        tokens: Any = self.tokens.tolist()
        logprobs = self.logprobs.read() if self.logprobs is not None else {}
        return [(row, Reading(tokens[i], logprobs.get(i))) for i, row in enumerate(self.rows)]


class Batch:
    """Rows, their caches, and the token each takes in next (on the device)."""

    def __init__(self, cache: RowsCache, adapters: Adapters) -> None:
        self.cache = cache
        self._adapters = adapters
        self.rows: list[Row] = []
        self._inputs = mx.zeros(0, dtype=mx.uint32)
        self._sampler: Sampler | None = None
        self._parameters: list[Sampling] = []
        self._asked: tuple[int, ...] = ()

    def join(self, added: Sequence[Row]) -> None:
        """Take in rows that are prefilled up to their last id, together with their caches."""
        order = self.cache.join([_owned(row) for row in added])
        last = mx.array([row.ids[-1] for row in added], dtype=mx.uint32)
        self._inputs = mx.concatenate([self._inputs, last]) if self.rows else last
        self.rows = [*self.rows, *added]
        self._reorder(order)

    def anew(self) -> Batch:
        """Another one for the same model, without rows."""
        return Batch(self.cache.fresh(), self._adapters)

    def take(self, index: int) -> Caches:
        """A copy of one row's caches, while it is still in the batch."""
        return self.cache.take(index)

    def keep(self, indices: Sequence[int]) -> None:
        """Let all other rows go."""
        self._reorder(self.cache.keep(indices))

    def forward(self) -> mx.array:
        """The graph of the next logits, [rows, vocabulary]."""
        order = self.cache.reserve(1)
        if order is not None:
            self._reorder(order)
        self._adapters.select([row.adapter for row in self.rows])
        return self.cache.forward(self._inputs[:, None])[:, -1, :]

    def sample(self, logits: mx.array, masks: mx.array | None = None) -> Step:
        """The graph of every row's next token, which the following forward pass takes in."""
        if self._sampler is None:
            self._sampler = Sampler([row.sampling for row in self.rows])
            self._parameters = [row.sequence.sampling for row in self.rows]
            self._asked = wanted_logprobs(self._parameters)
        tokens = self._sampler(logits, masks)
        logprobs = logprobs_of(logits, tokens, self._asked, self._parameters) if self._asked else None
        # The maximum is finite unless some logit is NaN or +inf, or all are -inf.
        is_finite = mx.isfinite(mx.max(logits, axis=-1))
        self._inputs = tokens
        return Step(tuple(self.rows), mx.where(is_finite, tokens.astype(mx.int32), -1), logprobs)

    def _reorder(self, order: Order) -> None:
        if self._sampler is not None:
            self._sampler.release()
            self._sampler = None
        if order != list(range(len(self.rows))):
            self._inputs = self._inputs[mx.array(order, dtype=mx.int32)]
            self.rows = [self.rows[index] for index in order]


def _owned(row: Row) -> Caches:
    """Take over a row's caches: the batch changes them in place."""
    caches, row.caches = row.caches, None
    assert caches is not None
    return caches
