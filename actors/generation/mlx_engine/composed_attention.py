"""Attention by MLX's plain operations, for passes of several tokens a row on CUDA.

MLX's fused attention is cuDNN's there, which makes a plan for every shape that it has not met, and that takes longer
than the pass (50 to 70 ms in cuDNN 9). Chunks beside running rows, the rest of a prompt behind its cached prefix and
checks of proposals come in ever new numbers of tokens and columns. Plain operations have nothing to prepare. They write
the scores to memory, though: where these are very many, the plan is the smaller cost.

Scores and their softmax are float32 whatever the model's type is, as inside fused kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx_lm.models.base import quantized_scaled_dot_product_attention
from mlx_lm.models.cache import KVCache

from mlx_serving.actors.generation.mlx_engine.attention import AttendingCache
from mlx_serving.actors.generation.mlx_engine.caches import Caches
from mlx_serving.actors.generation.mlx_engine.kv_format import Slab

_MOST_SCORES = 1 << 26
"""A layer's, of all heads: 256 MB, which take about a millisecond to go through."""

_chosen = False


def choose(setting: str) -> None:
    """Whether this process computes so: `on`, `off`, or `auto`, which is on CUDA alone."""
    global _chosen
    _chosen = setting == "on" or (setting == "auto" and bool(mx.cuda.is_available()))


def attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    scale: float,
    mask: mx.array | str | None,
    sinks: mx.array | None = None,
) -> mx.array:
    """What `mx.fast.scaled_dot_product_attention` computes; whichever of the two ways suits the shapes.

    `mask`: "causal", None, or bools [rows, 1, tokens, columns].
    """
    rows, heads, tokens, _ = queries.shape
    is_small = rows * heads * tokens * keys.shape[2] <= _MOST_SCORES
    if not _chosen or tokens == 1 or sinks is not None or not is_small:
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask, sinks=sinks)
    bools = _causal(tokens, keys.shape[2]) if isinstance(mask, str) else mask
    return _composed(queries, keys, values, scale, bools)


def quantised_attention(
    queries: mx.array,
    keys: Slab,
    values: Slab,
    scale: float,
    mask: mx.array | str | None,
    group_size: int,
    bits: int,
) -> mx.array:
    """Attention to quantised keys and values, three arrays each. `mask`: as for `attention`, or [tokens, columns].

    MLX has no products with them on CUDA; there they are dequantised before.
    """
    if not mx.cuda.is_available():
        theirs: Callable[..., mx.array] = quantized_scaled_dot_product_attention
        return theirs(queries, keys, values, scale=scale, mask=mask, group_size=group_size, bits=bits)
    wide = [
        mx.dequantize(digits, scales, offsets, group_size=group_size, bits=bits)
        for digits, scales, offsets in (keys, values)
    ]
    if isinstance(mask, mx.array) and mask.ndim == 2:
        mask = mask[None, None]
    return attention(queries, wide[0], wide[1], scale, mask)


def _causal(tokens: int, columns: int) -> mx.array:
    """Bools [1, 1, tokens, columns]: the last token sees every column."""
    ends = mx.arange(columns - tokens, columns)[:, None]
    return (mx.arange(columns) <= ends)[None, None]


def _composed(queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array | None) -> mx.array:
    rows, heads, tokens, size = queries.shape
    kv_heads, columns = keys.shape[1], keys.shape[2]
    shared = heads // kv_heads
    # The heads that share a key stand below each other, so keys and values are not repeated.
    stacked = (queries.astype(mx.float32) * scale).reshape(rows, kv_heads, shared * tokens, size)
    scores = stacked @ keys.astype(mx.float32).swapaxes(2, 3)
    if mask is not None:
        scores = scores.reshape(rows, kv_heads, shared, tokens, columns)
        scores = mx.where(mask[:, :, None], scores, -mx.inf).reshape(rows, kv_heads, shared * tokens, columns)
    attended = mx.softmax(scores, axis=-1) @ values.astype(mx.float32)
    return attended.reshape(rows, heads, tokens, -1).astype(queries.dtype)


class ChunkLayer(AttendingCache):
    """One layer's plain cache, as the model sees it while a chunk of a prompt goes through."""

    def __init__(self, cache: KVCache) -> None:
        self._cache: Any = cache

    @property
    def offset(self) -> int:
        """Tokens before this pass."""
        return int(self._cache.offset)

    def make_mask(self, *_: Any, **__: Any) -> None:
        """None: masking is part of attending."""
        return

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        both: tuple[mx.array, mx.array] = self._cache.update_and_fetch(keys, values)
        return both

    def attend(
        self, queries: mx.array, keys: mx.array, values: mx.array, scale: float, sinks: mx.array | None
    ) -> mx.array:
        return attention(queries, keys, values, scale, "causal" if queries.shape[2] > 1 else None, sinks)


def around(model: Callable[..., Any]) -> Callable[..., Any]:
    """The model, whose attention goes this way where that is chosen: for models that also run on slabs."""

    def through(tokens: mx.array, cache: Caches) -> Any:
        if _chosen and all(type(layer) is KVCache for layer in cache):
            cache = [ChunkLayer(layer) for layer in cache]
        return model(tokens, cache=cache)

    return through
