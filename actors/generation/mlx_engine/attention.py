"""How a model's attention reaches the slabs: the name its module calls is replaced once, at load.

mlx-lm's models take `scaled_dot_product_attention` into their own module. Ours hands the call to the cache where that
is a slab, which writes and reads keys and values itself, and is mlx-lm's own function for every other cache.
"""

from __future__ import annotations

import sys
from typing import Any

import mlx.core as mx
from mlx_lm.models import base

_NAME = "scaled_dot_product_attention"
_original = base.scaled_dot_product_attention


class AttendingCache:
    """A cache that computes attention itself, from the keys and values of this step's tokens alone."""

    def attend(
        self, queries: mx.array, keys: mx.array, values: mx.array, scale: float, sinks: mx.array | None
    ) -> mx.array:
        """[rows, heads, tokens, head size] from queries of that shape and the new keys and values."""
        raise NotImplementedError


def scaled_dot_product_attention(
    queries: mx.array,
    keys: Any,
    values: Any,
    cache: Any,
    scale: float,
    mask: Any,
    sinks: mx.array | None = None,
) -> Any:
    """mlx-lm's signature."""
    if isinstance(cache, AttendingCache):
        return cache.attend(queries, keys, values, scale, sinks)
    return _original(queries, keys, values, cache=cache, scale=scale, mask=mask, sinks=sinks)


def redirect_attention(model: Any) -> int:
    """Let every module of mlx-lm that `model` is made of call ours. Returns how many do."""
    names = {type(module).__module__ for module in model.modules()}
    modules = [sys.modules[name] for name in names if name in sys.modules]
    ours = (_original, scaled_dot_product_attention)
    redirected = [module for module in modules if getattr(module, _NAME, None) in ours]
    for module in redirected:
        setattr(module, _NAME, scaled_dot_product_attention)
    return len(redirected)
