"""Log-probabilities of drawn tokens and of their likeliest rivals, for the rows that asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import mlx.core as mx

from mlx_serving.actors.generation.mlx_engine import picking
from mlx_serving.actors.messages.values import Sampling


@attrs.frozen
class RawLogprob:
    """Of one drawn token: its own, and the likeliest tokens with theirs, best first."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@attrs.frozen(eq=False)
class Logprobs:
    """Of one step, still on the device. `places[i]` is the batch index of row i of the arrays."""

    places: tuple[int, ...]
    tops: tuple[int, ...]
    chosen: mx.array
    ids: mx.array | None
    values: mx.array | None

    @property
    def arrays(self) -> list[mx.array]:
        return [each for each in (self.chosen, self.ids, self.values) if each is not None]

    def read(self) -> dict[int, RawLogprob]:
        """By batch index. Waits for the step."""
        chosen: Any = self.chosen.tolist()
        ids: Any = self.ids.tolist() if self.ids is not None else [[]] * len(chosen)
        values: Any = self.values.tolist() if self.values is not None else ids
        return {
            place: RawLogprob(own, tuple(zip(row_ids[:top], row_values[:top], strict=True)))
            for place, top, own, row_ids, row_values in zip(self.places, self.tops, chosen, ids, values, strict=True)
        }


def wanted_logprobs(parameters: Sequence[Sampling]) -> tuple[int, ...]:
    """Places of the rows that asked."""
    return tuple(place for place, each in enumerate(parameters) if each.logprobs)


def logprobs_of(
    logits: mx.array, tokens: mx.array, places: tuple[int, ...], parameters: Sequence[Sampling]
) -> Logprobs:
    """From the raw logits [rows, vocabulary], before bias, penalties, temperature and filters."""
    rows = mx.array(places)
    raw = logits[rows].astype(mx.float32)
    scores = raw - mx.logsumexp(raw, axis=-1, keepdims=True)
    chosen = picking.along_last(scores, mx.maximum(tokens[rows], 0)[:, None])[:, 0]
    tops = tuple(parameters[place].top_logprobs for place in places)
    count = min(max(tops), scores.shape[-1])
    if not count:
        return Logprobs(places, tops, chosen, None, None)
    ids = mx.argpartition(-scores, count - 1, axis=-1)[:, :count].astype(mx.int32)
    values = picking.along_last(scores, ids)
    order = mx.argsort(-values, axis=-1)
    ids, values = (picking.along_last(each, order) for each in (ids, values))
    return Logprobs(places, tops, chosen, ids, values)
