"""Logit bias and the repetition, presence and frequency penalties.

What a row has said is counted on the device, so that no step costs work in proportion to the length of the
text.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import mlx.core as mx
import numpy as np

from mlx_serving.actors.generation.mlx_engine import draw_kernel, picking
from mlx_serving.actors.generation.mlx_engine.device import is_cpu
from mlx_serving.actors.messages.values import Sampling
from mlx_serving.native import kernels

_PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")


class History:
    """The tokens of one row's prompt and answer, as the penalties want them. Built when first needed."""

    def __init__(self, prompt_ids: list[int]) -> None:
        self._prompt_ids = prompt_ids
        self._answer_ids: list[int] = []
        self._counts: mx.array | None = None
        self._seen: mx.array | None = None

    def restart(self, answer_ids: list[int]) -> None:
        """Forget what was counted; the answer is these tokens so far."""
        self._answer_ids = answer_ids
        self._counts = self._seen = None

    def load(self, vocab_size: int) -> tuple[mx.array, mx.array]:
        """Each token's count in the answer (float32), and whether prompt or answer has it: [vocabulary]."""
        if self._counts is None or self._seen is None:
            # Here, for scattering on CUDA first compiles for seconds.
            seen = np.zeros(vocab_size, dtype=np.bool_)
            seen[self._prompt_ids + self._answer_ids] = True
            counts = np.bincount(np.array(self._answer_ids, dtype=np.int64), minlength=vocab_size)
            self._counts, self._seen = mx.array(counts.astype(np.float32)), mx.array(seen)
        return self._counts, self._seen

    def store(self, counts: mx.array, seen: mx.array) -> None:
        self._counts, self._seen = counts, seen


@attrs.define(eq=False)
class Adjustments:
    """Rows of a batch whose logits are adjusted before anything else; arrays are [those rows, vocabulary]."""

    indices: list[int]
    rows: Sequence[tuple[Sampling, History]]
    is_whole: bool
    bias: mx.array | None = None
    counts: mx.array | None = None
    seen: mx.array | None = None
    native: tuple[mx.array, mx.array] | None = None
    """What the native operation takes besides: each row's place among these, and their `factors` side by side."""
    in_kernel: mx.array | None = None
    """What a GPU's kernel takes besides, see `draw_kernel.Adjusting`."""
    places: mx.array = attrs.field(init=False)
    """`indices` on the device."""
    factors: tuple[mx.array, ...] = attrs.field(init=False)
    """The penalties, each [those rows, 1]."""

    def __attrs_post_init__(self) -> None:
        self.places = mx.array(self.indices, dtype=mx.int32)
        self.factors = tuple(
            mx.array([[getattr(parameters, name)] for parameters, _ in self.rows], dtype=mx.float32)
            for name in _PENALTIES
        )

    @classmethod
    def of(cls, rows: Sequence[tuple[Sampling, History]]) -> Adjustments | None:
        """None if no row wants any."""
        indices = [
            index for index, (parameters, _) in enumerate(rows) if parameters.logit_bias or _is_penal(parameters)
        ]
        if not indices:
            return None
        if not is_cpu():  # picking rows out and putting them back takes longer there than what it saves
            indices = list(range(len(rows)))
        return cls(indices, [rows[index] for index in indices], is_whole=len(indices) == len(rows))

    def apply(self, logits: mx.array) -> mx.array:
        """Logits [batch, vocabulary] with the adjusted rows replaced, in float32."""
        self._prepare(logits.shape[-1])
        if draw_kernel.way() == "cpu":
            return self._apply_natively(logits)
        logits = logits.astype(mx.float32)
        chosen = logits if self.is_whole else logits[self.places]
        if self.bias is not None:
            chosen = chosen + self.bias
        if self.counts is not None and self.seen is not None:
            chosen = self._penalised(chosen, self.counts, self.seen)
        if self.is_whole:
            return chosen
        logits[self.places] = chosen
        return logits

    def _apply_natively(self, logits: mx.array) -> mx.array:
        if self.native is None:
            places = [-1] * logits.shape[0]
            for place, index in enumerate(self.indices):
                places[index] = place
            self.native = mx.array(places, dtype=mx.int32), mx.concatenate(list(self.factors), axis=1)
        places_of_rows, factors = self.native
        adjusted: mx.array = kernels.operations.adjust(
            logits, places_of_rows, self.bias, self.counts, self.seen, factors
        )
        return adjusted

    def adjusting(self, vocab_size: int) -> draw_kernel.Adjusting:
        """For a GPU's kernel, which then adjusts the logits, and counts; `counted` has to follow."""
        self._prepare(vocab_size)
        if self.in_kernel is None:
            told = np.zeros((len(self.rows), draw_kernel.FACTORS), dtype=np.float32)
            for place, (each, _) in enumerate(self.rows):
                told[place, :5] = [
                    *(getattr(each, name) for name in _PENALTIES),
                    _is_penal(each),
                    bool(each.logit_bias),
                ]
            self.in_kernel = mx.array(told)
        return draw_kernel.Adjusting(self.in_kernel, self.bias, self.counts, self.seen)

    def counted(self, tokens: mx.array) -> None:
        """The kernel that draws these tokens [batch] also counts them: nothing may read the counts before."""
        if self.counts is not None and self.seen is not None:
            self.counts, self.seen = mx.depends([self.counts, self.seen], [tokens])

    def record(self, tokens: mx.array) -> None:
        """Count the tokens [batch] just drawn."""
        if self.counts is None or self.seen is None:
            return
        drawn = tokens if self.is_whole else tokens[self.places]
        if is_cpu():
            places = mx.arange(len(self.indices))
            self.counts = self.counts.at[places, drawn].add(1.0)
            self.seen[places, drawn] = True
            return
        ids = mx.arange(self.counts.shape[1], dtype=mx.int32)
        self.counts, self.seen = _compiled(_counted)(self.counts, self.seen, drawn, ids)

    def apply_ahead(self, logits: mx.array, drafts: mx.array) -> mx.array:
        """Logits [batch, width, vocabulary], each place as if the row had said its drafts [batch, width - 1] before it.

        Only the drafted tokens' counts differ from place to place, so only they are computed for each.
        """
        logits = logits.astype(mx.float32)
        self._prepare(logits.shape[-1])
        chosen = logits if self.is_whole else logits[self.places]
        if self.bias is not None:
            chosen = chosen + self.bias[:, None]
        if self.counts is not None and self.seen is not None:
            drafted = drafts if self.is_whole else drafts[self.places]
            chosen = self._penalised_ahead(chosen, self.counts, self.seen, drafted)
        if self.is_whole:
            return chosen
        logits[self.places] = chosen
        return logits

    def record_ahead(self, tokens: mx.array, counts: Sequence[int]) -> None:
        """Count the first `counts` [batch] of tokens [batch, width]."""
        if self.counts is None or self.seen is None:
            return
        chosen, lengths = tokens[self.places], mx.array([counts[index] for index in self.indices])
        is_said = mx.arange(tokens.shape[1]) < lengths[:, None]
        if is_cpu():
            places = mx.arange(len(self.indices))[:, None]
            said = mx.zeros_like(self.counts).at[places, chosen].add(is_said)
        else:
            chosen = mx.where(is_said, chosen, -1)
            ids = mx.arange(self.counts.shape[1], dtype=mx.int32)
            said = (ids == chosen[..., None]).astype(mx.float32).sum(axis=1)
        self.counts, self.seen = self.counts + said, mx.logical_or(self.seen, said > 0)

    def release(self) -> None:
        """Give the state back to the rows."""
        if self.counts is None or self.seen is None:
            return
        for place, (parameters, history) in enumerate(self.rows):
            if _is_penal(parameters):
                own = slice(place, place + 1)  # by a number alone MLX gathers, which CUDA first compiles for seconds
                history.store(*(mx.contiguous(each[own].squeeze(0)) for each in (self.counts, self.seen)))

    def _prepare(self, vocab_size: int) -> None:
        if self.bias is None and any(parameters.logit_bias for parameters, _ in self.rows):
            self.bias = mx.stack([_dense(parameters.logit_bias, vocab_size) for parameters, _ in self.rows])
        if self.counts is None and any(_is_penal(parameters) for parameters, _ in self.rows):
            blank = mx.zeros(vocab_size), mx.zeros(vocab_size, dtype=mx.bool_)  # for rows that nothing is taken from
            loaded = [history.load(vocab_size) if _is_penal(parameters) else blank for parameters, history in self.rows]
            self.counts = mx.stack([counts for counts, _ in loaded])
            self.seen = mx.stack([seen for _, seen in loaded])

    def _penalised(self, logits: mx.array, counts: mx.array, seen: mx.array) -> mx.array:
        factors = [each.reshape(-1, *[1] * (logits.ndim - 1)) for each in self.factors]
        penalised = _penalised if is_cpu() else _compiled(_penalised)
        return penalised(logits, counts, seen, *factors)

    def _penalised_ahead(self, logits: mx.array, counts: mx.array, seen: mx.array, drafts: mx.array) -> mx.array:
        width = logits.shape[1]
        adjusted = self._penalised(logits, counts[:, None], seen[:, None])
        if width == 1:
            return adjusted
        drafts = mx.maximum(drafts, 0)
        is_before = mx.arange(width - 1) < mx.arange(width)[:, None]
        is_same = drafts[:, :, None] == drafts[:, None]
        more = (is_same[:, None] & is_before[None, :, :, None]).sum(axis=2)
        ids = mx.broadcast_to(drafts[:, None], more.shape)
        own_counts = picking.along_last(counts, drafts)[:, None] + more
        own_seen = mx.logical_or(picking.along_last(seen, drafts)[:, None], more > 0)
        own = self._penalised(picking.along_last(logits, ids), own_counts, own_seen)
        if is_cpu():
            return mx.put_along_axis(adjusted, ids, own, axis=2)
        vocabulary = mx.arange(logits.shape[2], dtype=mx.int32)
        for place in range(width - 1):
            adjusted = mx.where(vocabulary == drafts[:, place, None, None], own[:, :, place, None], adjusted)
        return adjusted


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """In one pass over the vocabulary instead of a dozen."""
    compiled: Callable[..., Any] = mx.compile(function)
    return compiled


def _penalised(
    logits: mx.array, counts: mx.array, seen: mx.array, repetition: mx.array, presence: mx.array, frequency: mx.array
) -> mx.array:
    repeated = mx.where(logits > 0, logits / repetition, logits * repetition)
    logits = mx.where(seen, repeated, logits)
    said = (counts > 0).astype(mx.float32)
    return logits - presence * said - frequency * counts


def _counted(counts: mx.array, seen: mx.array, drawn: mx.array, ids: mx.array) -> tuple[mx.array, mx.array]:
    is_drawn = ids == drawn[:, None]
    return counts + is_drawn, mx.logical_or(seen, is_drawn)


def _is_penal(parameters: Sampling) -> bool:
    return bool(parameters.repetition_penalty != 1 or parameters.presence_penalty or parameters.frequency_penalty)


def _dense(bias: dict[int, float], vocab_size: int) -> mx.array:
    dense = np.zeros(vocab_size, dtype=np.float32)
    dense[list(bias)] = list(bias.values())
    return mx.array(dense)
