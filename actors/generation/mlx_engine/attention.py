"""How a model's attention reaches the slabs: the name its module calls is replaced once, at load.

mlx-lm's models take `scaled_dot_product_attention` into their own module. Ours hands the call to the cache where that
is a slab, which writes and reads keys and values itself, and for every other cache to what the module had before. On
CUDA, where mlx-lm's attention to quantised caches does not run, it goes to the function that is given for these.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import QuantizedKVCache

_NAME = "scaled_dot_product_attention"
_handing: set[Callable[..., Any]] = set()


class AttendingCache:
    """A cache that computes attention itself, from what its `update_and_fetch` returned."""

    def attend(
        self, queries: mx.array, keys: mx.array, values: mx.array, scale: float, sinks: mx.array | None
    ) -> mx.array:
        """[rows, heads, tokens, head size] from queries of that shape and those keys and values."""
        raise NotImplementedError


@functools.cache
def _handing_over(attention: Callable[..., Any], quantised: Callable[..., mx.array]) -> Callable[..., Any]:
    """`attention` for every cache but those that attend themselves, and quantised ones on CUDA. It has mlx-lm's
    signature."""

    @functools.wraps(attention)
    def handing_over(
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
        if isinstance(cache, QuantizedKVCache) and sinks is None and mx.cuda.is_available():
            return quantised(queries, keys, values, scale, mask, cache.group_size, cache.bits)
        return attention(queries, keys, values, cache=cache, scale=scale, mask=mask, sinks=sinks)

    _handing.add(handing_over)
    return handing_over


def redirect_attention(model: Any, quantised: Callable[..., mx.array]) -> int:
    """Let every module of mlx-lm that `model` is made of call ours. Returns how many do.

    `quantised` takes queries, keys and values, a factor, a mask, group size and bits.
    """
    names = {type(module).__module__ for module in model.modules()}
    modules = [sys.modules[name] for name in names if hasattr(sys.modules.get(name), _NAME)]
    for module in modules:
        attention = getattr(module, _NAME)
        if attention not in _handing:
            setattr(module, _NAME, _handing_over(attention, quantised))
    return len(modules)
