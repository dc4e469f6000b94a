"""How a model's attention reaches the slabs: the name its module calls is replaced once, at load.

mlx-lm's models take `scaled_dot_product_attention` into their own module. Ours hands the call to the cache where that
is a slab, which writes and reads keys and values itself, and for every other cache to what the module had before.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import mlx.core as mx

_NAME = "scaled_dot_product_attention"
_handing: set[Callable[..., Any]] = set()


class AttendingCache:
    """A cache that computes attention itself, from the keys and values of this step's tokens alone."""

    def attend(
        self, queries: mx.array, keys: mx.array, values: mx.array, scale: float, sinks: mx.array | None
    ) -> mx.array:
        """[rows, heads, tokens, head size] from queries of that shape and the new keys and values."""
        raise NotImplementedError


@functools.cache
def _handing_over(attention: Callable[..., Any]) -> Callable[..., Any]:
    """`attention` for every cache but those that attend themselves. It has mlx-lm's signature."""

    @functools.wraps(attention)
    class Redirected:
    """mlx-lm's function, or one of ours with its signature, but for the caches that attend themselves."""

    def __init__(self, theirs: Callable[..., Any]) -> None:
        self._theirs = theirs

    def __call__(
        self,
        queries: mx.array,
        keys: Any,
        values: Any,
        cache: Any,
        scale: float,
        mask: Any,
        sinks: mx.array | None = None,
    ) -> Any:
        if isinstance(cache, AttendingCache):
            return cache.attend(queries, keys, values, scale, sinks)
        return self._theirs(queries, keys, values, cache=cache, scale=scale, mask=mask, sinks=sinks)


def redirect_attention(model: Any) -> int:
    """Let every module of mlx-lm that `model` is made of call ours. Returns how many do."""
    names = {type(module).__module__ for module in model.modules()}
    redirected = 0
    for module in [sys.modules[name] for name in names if name in sys.modules]:
        theirs = getattr(module, _NAME, None)
        if theirs is base.scaled_dot_product_attention or theirs is functions.scaled_dot_product_attention:
            setattr(module, _NAME, Redirected(theirs))
        redirected += isinstance(getattr(module, _NAME, None), Redirected)
    return redirected
