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
from mlx_serving.actors.generation.mlx_engine import launched_numbers, picking
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


@attrs.frozen(eq=False)
class Check:
    """A step that checks proposals. `tokens` [rows, width] are what the rows say themselves, -1 where the logits were
    not finite; the first `accepted` [rows] of them were proposed."""

    rows: tuple[Row, ...]
    tokens: mx.array
    accepted: mx.array
    logprobs: Logprobs | None
    """Of the first tokens."""

    def read(self) -> list[list[Reading]]:
        """Wait for the step; each row's tokens, the last of which was not proposed."""
        tokens: Any = mx.concatenate([self.accepted[:, None], self.tokens], axis=1).tolist()
        logprobs = self.logprobs.read() if self.logprobs is not None else {}
        said = [[Reading(token) for token in row[: accepted + 1]] for accepted, *row in tokens]
        for place, logprob in logprobs.items():
            said[place][0] = Reading(said[place][0].token_id, logprob)
        return said


class Batch:
    """Rows, their caches, and the token each takes in next (on the device)."""

    def __init__(self, cache: RowsCache, adapters: Adapters) -> None:
        self.cache = cache
        self._adapters = adapters
        self.rows: list[Row] = []
        self._inputs = mx.zeros(0, dtype=mx.int32)
        self._sampler: Sampler | None = None
        self._parameters: list[Sampling] = []
        self._asked: tuple[int, ...] = ()

    def join(self, added: Sequence[Row]) -> None:
        """Take in rows that are prefilled up to their last id, together with their caches."""
        order = self.cache.join([_owned(row) for row in added])
        last = mx.array([row.ids[-1] for row in added], dtype=mx.int32)
        self._inputs = mx.concatenate([self._inputs, last]) if self.rows else last
        self.rows = [*self.rows, *added]
        self._reorder(order)

    def anew(self) -> Batch:
        """Another one for the same model, without rows."""
        return Batch(self.cache.fresh(), self._adapters)

    def emptied(self, most_bytes: int) -> Batch:
        """Another one that has at most so many bytes of this one's memory; this one is used no more."""
        return Batch(self.cache.emptied(most_bytes), self._adapters)

    def take(self, index: int) -> Caches:
        """A copy of one row's caches, while it is still in the batch."""
        return self.cache.take(index)

    def keep(self, indices: Sequence[int]) -> None:
        """Let all other rows go."""
        self._reorder(self.cache.keep(indices))

    def forward(self) -> mx.array:
        """The graph of the next logits, [rows, vocabulary]."""
        self.reserve(1)
        adapters = [row.adapter for row in self.rows]
        self._adapters.select(adapters)
        return self.cache.forward(self._inputs[:, None], is_plain=not any(adapters))[:, -1, :]

    def reserve(self, tokens: int) -> None:
        """Make room for so many more tokens in every row; may change their order."""
        order = self.cache.reserve(tokens)
        if order is not None:
            self._reorder(order)

    def check(
        self,
        drafts: mx.array,
        counts: Sequence[int],
        masks: mx.array | None = None,
        drafted: mx.array | None = None,
    ) -> Check:
        """The graph of a step in which the first `counts` [rows] of drafts [rows, width - 1] are proposed.

        `reserve` as many tokens as `width` before, and `settle` what of it has come true after. Log-probabilities are
        those of the first token: rows that want them have nothing proposed. `drafted`: see `Sampler.ahead`.
        """
        adapters = [row.adapter for row in self.rows]
        self._adapters.select(adapters)
        drafts = drafts.astype(mx.int32)
        inputs = mx.concatenate([self._inputs[:, None], drafts], axis=1)
        logits = self.cache.forward(inputs, is_plain=not any(adapters))
        is_proposed = mx.arange(drafts.shape[1]) < launched_numbers.integers(counts)[:, None]
        if drafted is not None:
            drafted = mx.where(is_proposed[..., None], drafted, 0.0)
        tokens = self._prepared_sampler().ahead(logits, drafts, masks, drafted)
        is_accepted = mx.logical_and(tokens[:, :-1] == drafts, is_proposed)
        accepted = mx.cumprod(is_accepted.astype(mx.int32), axis=1).sum(axis=1)
        is_finite = mx.isfinite(mx.max(logits, axis=-1))
        logprobs = None
        if self._asked:
            logprobs = logprobs_of(logits[:, 0], tokens[:, 0], self._asked, self._parameters)
        return Check(tuple(self.rows), mx.where(is_finite, tokens, -1), accepted, logprobs)

    def settle(self, check: Check, counts: Sequence[int]) -> None:
        """The rows have said the first `counts` [rows] of the check's tokens; forget the others."""
        width = check.tokens.shape[1]
        self.cache.drop([width - count for count in counts])
        tokens = mx.maximum(check.tokens, 0)
        self._prepared_sampler().advance(tokens, counts)
        last = launched_numbers.integers(counts)[:, None] - 1
        self._inputs = picking.along_last(tokens, last)[:, 0]

    def sample(self, logits: mx.array, masks: mx.array | None = None) -> Step:
        """The graph of every row's next token, which the following forward pass takes in."""
        tokens = self._prepared_sampler()(logits, masks)
        self._inputs = tokens
        return _step(self.rows, logits, tokens, self._asked, self._parameters)

    def _prepared_sampler(self) -> Sampler:
        if self._sampler is None:
            self._sampler = Sampler([row.sampling for row in self.rows])
            self._parameters = [row.sequence.sampling for row in self.rows]
            self._asked = wanted_logprobs(self._parameters)
        return self._sampler

    def _reorder(self, order: Order) -> None:
        if self._sampler is not None:
            self._sampler.release()
            self._sampler = None
        if order != list(range(len(self.rows))):
            self._inputs = self._inputs[mx.array(order, dtype=mx.int32)]
            self.rows = [self.rows[index] for index in order]


def first_step(row: Row, logits: mx.array, masks: mx.array | None) -> Step:
    """The graph of a row's first token before it is in any batch, from the logits [1, vocabulary] after its prompt."""
    sampler, parameters = Sampler([row.sampling]), [row.sequence.sampling]
    tokens = sampler(logits, masks)
    sampler.release()
    return _step([row], logits, tokens, wanted_logprobs(parameters), parameters)


def _step(
    rows: Sequence[Row], logits: mx.array, tokens: mx.array, asked: tuple[int, ...], parameters: Sequence[Sampling]
) -> Step:
    logprobs = logprobs_of(logits, tokens, asked, parameters) if asked else None
    return Step(tuple(rows), tokens, logprobs)


def _owned(row: Row) -> Caches:
    """Take over a row's caches: the batch changes them in place."""
    caches, row.caches = row.caches, None
    assert caches is not None
    return caches
