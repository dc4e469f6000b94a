"""Rejection sampling: proposals drawn from one distribution, answers that follow another one exactly.

A token x that was drawn with probability q(x) is accepted with probability min(1, p(x) / q(x)); after a rejection the
row draws from what p has above q. What comes out is distributed as p, whatever q is (Leviathan, Kalman and Matias,
2023; Chen et al., 2023).
"""

from __future__ import annotations

import mlx.core as mx

from mlx_serving.actors.generation.mlx_engine import picking


def judged(weights: mx.array, drafts: mx.array, drafted: mx.array, chances: mx.array, rest: mx.array) -> mx.array:
    """Tokens [rows, places]: the drafts where they are accepted, and elsewhere what is drawn instead.

    `weights` [rows, places, vocabulary] are in proportion to p, `drafted` are the probabilities q. `chances` and `rest`
    [rows, places] are independent uniform numbers: for accepting, and for drawing after a rejection.
    """
    wanted = weights / weights.sum(axis=-1, keepdims=True)
    places = drafts[..., None]
    p, q = (picking.along_last(each, places)[..., 0] for each in (wanted, drafted))
    return mx.where(chances * q < p, drafts, pick(mx.maximum(wanted - drafted, 0.0), rest[..., None]))


def pick(weights: mx.array, uniform: mx.array) -> mx.array:
    """Along the last axis, the first index where the cumulative weight passes `uniform` of the whole, never of
    weight 0."""
    mass = mx.cumsum(weights, axis=-1)
    target = uniform * mx.max(mass, axis=-1, keepdims=True)
    return mx.argmax(mx.logical_and(mass > target, weights > 0), axis=-1).astype(mx.int32)
