"""Which tokens a draw may give, in float64, where rounding may turn a boundary either way."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
from numpy.typing import NDArray

from mlx_serving.actors.messages.values import Sampling

Floats = NDArray[np.float64]
_SLACK = 2e-5
"""Of a share of the whole: float32 sums of a few thousand weights."""


def may_draw(token: int, logits: Floats, sampling: Sampling, uniform: float) -> bool:
    """Whether the draw with a uniform number may be `token`. Logits [vocabulary] are -inf where masked out."""
    if not sampling.temperature:
        return token == int(np.argmax(logits))
    weights = np.exp((logits - logits.max()) / max(sampling.temperature, 1e-30))
    return any(_holds(np.where(weights >= least, weights, 0.0), token, uniform) for least in _floors(weights, sampling))


def _holds(weights: Floats, token: int, uniform: float) -> bool:
    if not weights.any():
        return False
    reached = np.cumsum(weights) / weights.sum()
    before = reached[token - 1] if token else 0.0
    return bool(weights[token] > 0 and before - _SLACK <= uniform <= reached[token] + _SLACK)


def _floors(weights: Floats, sampling: Sampling) -> Iterator[float]:
    """The least weights that top-k, top-p and min-p may keep.

    Tokens that tie with the k-th are kept; whether they count in the mass of which top-p is a share is left open.
    """
    ranked = np.sort(weights)[::-1]
    count = sampling.top_k if 0 < sampling.top_k < len(weights) else len(weights)
    tied = int((weights >= ranked[count - 1] * (1 - _SLACK)).sum())
    nudges = (1 - _SLACK, 1 - _SLACK / 20, 1 + _SLACK)
    for mass, share, nudge in product({count, tied}, nudges, nudges):
        reached = np.cumsum(ranked[:mass])
        goal = reached[-1] * sampling.top_p * share
        is_enough = np.flatnonzero(reached >= goal) if sampling.top_p < 1 else np.array([], dtype=np.int64)
        least = ranked[is_enough[0] if len(is_enough) else mass - 1]
        yield max(least * nudge, sampling.min_p * nudge) if least else sampling.min_p * nudge
