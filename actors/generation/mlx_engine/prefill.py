"""Taking prompts in: a chunk at a time beside rows that decode, several in one pass where nothing else runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.models.cache import KVCache, QuantizedKVCache

from mlx_serving.actors.generation.mlx_engine import caches as prompt_caches
from mlx_serving.actors.generation.mlx_engine.caches import Caches
from mlx_serving.actors.generation.mlx_engine.chunk_program import ChunkProgram
from mlx_serving.actors.generation.mlx_engine.row import Row

_SHORT_TOKENS = 256
"""Prompts up to this share a forward pass, padded to the longest."""
CACHE_STEP = 256
"""Capacities of caches are multiples of it."""


def shares(unfilled: Sequence[int], budget: int) -> list[int]:
    """Divide a budget of tokens over prompts: equal parts; what short ones leave goes to long ones."""
    given = [0] * len(unfilled)
    order = sorted(range(len(unfilled)), key=unfilled.__getitem__)
    for place, index in enumerate(order):
        given[index] = min(unfilled[index], budget // (len(order) - place))
        budget -= given[index]
    return given


def can_share(row: Row) -> bool:
    """Whether its whole prompt may go through in one padded pass with others."""
    return row.caches is None and 0 < row.unfilled <= _SHORT_TOKENS


def fill(
    model: Callable[..., Any],
    row: Row,
    count: int,
    new_caches: Callable[[], Caches],
    chunks: ChunkProgram | None = None,
) -> None:
    """Set the next `count` ids of a row going through the model, on caches of its own. `chunks`: the model compiled."""
    if row.caches is None:
        row.caches = new_caches()
    if chunks is not None:
        chunks.fill(row.ids[row.filled : row.filled + count], row.caches, len(row.ids) + 1)
        row.filled += count
    elif count:
        _pass(model, row, row.caches, count)
        prompt_caches.start(prompt_caches.states(row.caches))


def fill_all(
    model: Callable[..., Any], row: Row, new_caches: Callable[[], Caches], chunks: ChunkProgram | None = None
) -> mx.array:
    """The graph of all ids of a row that are left, the last one too: the logits [1, vocabulary] after it."""
    if row.caches is None:
        row.caches = new_caches()
    if chunks is None:
        return _pass(model, row, row.caches, row.unfilled + 1)[:, -1]
    logits = chunks.fill_all(row.ids[row.filled :], row.caches, len(row.ids) + 1)
    row.filled = len(row.ids)
    return logits


def _pass(model: Callable[..., Any], row: Row, caches: Caches, count: int) -> mx.array:
    _sized(caches, max(count, row.unfilled))
    chunk = mx.array(row.ids[row.filled : row.filled + count], dtype=mx.int32)
    logits: mx.array = model(chunk[None], cache=caches)
    row.filled += count
    return logits


def fill_together(model: Callable[..., Any], rows: Sequence[Row], new_caches: Callable[[], Caches]) -> None:
    """Set the whole prompts of several rows going in one pass.

    For caches of plain keys and values alone: what is padded on the right is causally behind every real token.
    """
    lengths = [row.unfilled for row in rows]
    width = max(lengths)
    padded = [row.ids[: row.unfilled] + [0] * (width - row.unfilled) for row in rows]
    together = _sized(new_caches(), width)
    model(mx.array(padded, dtype=mx.int32), cache=together)
    for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        row.caches = [_part(cache, fresh, index, length) for cache, fresh in zip(together, new_caches(), strict=True)]
        row.filled = length
    prompt_caches.start([prompt_caches.states(row.caches) for row in rows if row.caches is not None])


def _part(cache: Any, fresh: Any, index: int, length: int) -> Any:
    """One row of a cache that several were filled in."""

    def own(part: mx.array) -> mx.array:
        return mx.contiguous(part[index : index + 1, :, :length])

    fresh.keys, fresh.values = tree_map(own, cache.keys), tree_map(own, cache.values)
    fresh.offset = length
    return fresh


def _sized(caches: Caches, tokens: int) -> Caches:
    """Let caches take so many more tokens without being copied for growth on the way."""
    for cache in caches:
        if isinstance(cache, KVCache | QuantizedKVCache):
            cache.step = max(CACHE_STEP, -(-tokens // CACHE_STEP) * CACHE_STEP)
    return caches
