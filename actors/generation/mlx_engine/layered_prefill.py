"""Prefill beside rows that decode, a few layers of a chunk at a time.

Between two decode steps there is time for a few prompt tokens. But a chunk of a few reads all weights and all columns
before it just as one of many does, and takes two to three times as long a token. So the chunk is a large one, and goes
through as many layers between two steps as take as long as the few tokens would; what the next layer is to be given
waits for the next step.

Each layer writes keys and values into the row's own cache, in place: nobody else reads these columns before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

from mlx_serving.actors.generation.mlx_engine import caches as prompt_caches
from mlx_serving.actors.generation.mlx_engine.caches import Caches
from mlx_serving.actors.generation.mlx_engine.kv_format import KvFormat, Slab
from mlx_serving.actors.generation.mlx_engine.prefill import CACHE_STEP
from mlx_serving.actors.generation.mlx_engine.row import Chunk, Row
from mlx_serving.native.kernels.stacks import DecoderStack

_MOST_TOKENS = 128
"""From here on a larger chunk takes hardly less time a token."""


class LayeredPrefill:
    """For models with a `DecoderStack`, whose caches are plain keys and values or quantised ones."""

    def __init__(self, stack: DecoderStack, new_caches: Callable[[], Caches]) -> None:
        self._stack = stack
        self._new_caches = new_caches

    def takes(self, row: Row) -> bool:
        """Whether the stack computes what the model does for this row."""
        return not row.adapter and self._stack.holds()

    def fill(self, row: Row, tokens: int) -> None:
        """Set layers going that are worth so many tokens, of which the row has as many left before it stops."""
        if row.caches is None:
            row.caches = self._new_caches()
        left = tokens
        while left:
            if row.chunk is None:
                row.chunk = self._begun(row, tokens)
            chunk = row.chunk
            paid = min(left, chunk.tokens - chunk.paid)
            chunk.paid, left = chunk.paid + paid, left - paid
            self._go_on(row, row.caches, chunk)

    def _begun(self, row: Row, tokens: int) -> Chunk:
        """A chunk of which `tokens` are worth a layer or more: with one or none in turns, steps would differ."""
        count = min(row.until_stop, max(tokens, min(_MOST_TOKENS, tokens * self._stack.layers)))
        ids = mx.array(row.ids[row.filled : row.filled + count], dtype=mx.int32)
        return Chunk(count, self._stack.enter(ids[None]))

    def _go_on(self, row: Row, caches: Caches, chunk: Chunk) -> None:
        """Through the layers that are paid; those behind the last one are the next tokens'."""
        end = self._stack.layers * chunk.paid // chunk.tokens
        if end > chunk.layer:
            layers = caches[chunk.layer : end]
            for cache in layers:
                self._make_room(cache, row.filled, row.filled + row.unfilled)
            lengths = mx.array([row.filled], dtype=mx.int32)
            slabs = [(cache.keys, cache.values) for cache in layers]
            chunk.hidden = self._stack.go_on(chunk.hidden, chunk.layer, (lengths, slabs))
            chunk.layer = end
            prompt_caches.start([chunk.hidden])
        if end == self._stack.layers:
            row.filled += chunk.tokens
            row.chunk = None
            for cache in caches:
                cache.offset = row.filled

    def _make_room(self, cache: Any, held: int, tokens: int) -> None:
        """Let a layer's cache, which holds some tokens, take so many in all."""
        if cache.keys is not None and _columns(cache.keys) >= tokens:
            return
        kv_heads, size = self._stack.kv_shape
        capacity = -(-tokens // CACHE_STEP) * CACHE_STEP
        form = KvFormat.of_cache(cache)

        def joined(part: mx.array, more: mx.array) -> mx.array:
            return mx.concatenate([part[:, :, :held], more], axis=2)

        def grown(side: Slab) -> Slab:
            room = form.zeros(1, kv_heads, capacity - held, size)
            return tree_map(joined, side, room) if held else room

        cache.keys, cache.values = grown(cache.keys), grown(cache.values)


def _columns(side: Slab) -> int:
    first = side if isinstance(side, mx.array) else side[0]
    return int(first.shape[2])
