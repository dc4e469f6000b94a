"""The rows that decode together, one forward pass for all of them a step.

A step is only set going here; its tokens are read after the next one is on its way, so that the device never
waits for the host. A lone row keeps its plain cache, which is the fastest there is; the second row makes it a
batched one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import mlx.core as mx

from mlx_serving.actors.generation.mlx_engine import caches as prompt_caches
from mlx_serving.actors.generation.mlx_engine.caches import Caches
from mlx_serving.actors.generation.mlx_engine.logprobs import Logprobs, logprobs_of, wanted_logprobs
from mlx_serving.actors.generation.mlx_engine.row import Reading, Row
from mlx_serving.actors.generation.mlx_engine.sampling import Sampler
from mlx_serving.actors.messages.values import Sampling


@attrs.frozen(eq=False)
class Step:
    """A step on its way. `tokens` [rows] is -1 where the logits were not finite."""

    rows: tuple[Row, ...]
    tokens: mx.array
    logprobs: Logprobs | None

    def read(self) -> list[tuple[Row, Reading]]:
        """Wait for the step and read its tokens."""
        tokens: Any = self.tokens.tolist()
        logprobs = self.logprobs.read() if self.logprobs is not None else {}
        return [(row, Reading(tokens[i], logprobs.get(i))) for i, row in enumerate(self.rows)]


class Batch:
    """Rows, their caches, and the token each takes in next (on the device)."""

    def __init__(self, model: Callable[..., Any]) -> None:
        self._model = model
        self._caches: Caches = []
        self._inputs = mx.zeros(0, dtype=mx.uint32)
        self._sampler: Sampler | None = None
        self._parameters: list[Sampling] = []
        self._asked: tuple[int, ...] = ()
        self.rows: list[Row] = []

    def join(self, added: list[Row]) -> None:
        """Take in rows that are prefilled up to their last id, together with their caches."""
        new = [_owned(row) for row in added]
        if not self.rows and len(new) == 1:
            self._caches = new[0]
        elif len(self.rows) > 1:
            prompt_caches.extend(self._caches, prompt_caches.merge(new))
        else:
            self._caches = prompt_caches.merge([self._caches, *new] if self.rows else new)
        last = mx.array([row.ids[-1] for row in added], dtype=mx.uint32)
        self._inputs = mx.concatenate([self._inputs, last]) if self.rows else last
        self.rows = [*self.rows, *added]
        self._release_sampler()

    def take(self, index: int) -> Caches:
        """A copy of one row's caches, while it is still in the batch."""
        return self._caches if len(self.rows) == 1 else prompt_caches.take(self._caches, index)

    def keep(self, indices: list[int]) -> None:
        """Let all other rows go."""
        self._release_sampler()
        if not indices:
            self.clear()
            return
        if len(indices) == 1:
            self._caches = prompt_caches.take(self._caches, indices[0])
        else:
            prompt_caches.keep(self._caches, indices)
        self._inputs = self._inputs[mx.array(indices)]
        self.rows = [self.rows[index] for index in indices]

    def clear(self) -> None:
        """Let every row go, whatever state the caches are in."""
        self.rows, self._caches, self._sampler = [], [], None
        self._inputs = mx.zeros(0, dtype=mx.uint32)

    def launch(self) -> Step:
        """Set the next step of all rows going."""
        if self._sampler is None:
            self._sampler = Sampler([row.sampling for row in self.rows])
            self._parameters = [row.sequence.sampling for row in self.rows]
            self._asked = wanted_logprobs(self._parameters)
        logits = self._model(self._inputs[:, None], cache=self._caches)[:, -1, :]
        tokens = self._sampler(logits)
        logprobs = logprobs_of(logits, tokens, self._asked, self._parameters) if self._asked else None
        # The maximum is finite unless some logit is NaN or +inf, or all are -inf.
        is_finite = mx.isfinite(mx.max(logits, axis=-1))
        checked = mx.where(is_finite, tokens.astype(mx.int32), -1)
        prompt_caches.start([tokens, checked, logprobs.arrays if logprobs is not None else []])
        self._inputs = tokens
        return Step(tuple(self.rows), checked, logprobs)

    def _release_sampler(self) -> None:
        if self._sampler is not None:
            self._sampler.release()
            self._sampler = None


def _owned(row: Row) -> Caches:
    """Take over a row's caches: the batch changes them in place."""
    caches, row.caches = row.caches, None
    assert caches is not None
    return caches
