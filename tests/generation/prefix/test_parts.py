"""Parts of caches: what is cut out of a row's, and what is put together of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import KVCache, QuantizedKVCache

from mlx_serving.actors.generation.mlx_engine.cache_parts import CacheParts, KvBlock
from mlx_serving.actors.generation.prefix.blocks import Block, Span

TOKENS = 24


def plain() -> Any:
    return KVCache()  # type: ignore[no-untyped-call]


def filled(new: Callable[[], Any], heads: int, sizes: tuple[int, int], layers: int = 2) -> list[Any]:
    """Caches of one row; keys and values are of these sizes."""
    caches = [new() for _ in range(layers)]
    random = np.random.default_rng(heads)
    for cache in caches:
        sides = [mx.array(random.normal(size=(1, heads, TOKENS, size)).astype(np.float32)) for size in sizes]
        cache.update_and_fetch(*sides)
    mx.eval([cache.state for cache in caches])
    return caches


def spans(parts: CacheParts, caches: list[Any], *ends: int) -> list[Span[KvBlock]]:
    """Blocks of the tokens between these ends, and the spans of all of them but the last one's last token."""
    starts = [0, *ends[:-1]]
    blocks = [Block(start, end, parts.cut(caches, start, end)) for start, end in zip(starts, ends, strict=True)]
    found = [Span(block, block.start, block.stop) for block in blocks]
    return [*found[:-1], Span(blocks[-1], blocks[-1].start, ends[-1] - 1)]


@pytest.mark.parametrize("in_one", [False, True])
@pytest.mark.parametrize(
    ("new", "sizes"),
    [(plain, (64, 64)), (plain, (64, 32)), (lambda: QuantizedKVCache(32, 8), (64, 64))],
    ids=["alike", "keys and values of different sizes", "quantised"],
)
def test_what_was_cut_is_put_together_again(new: Callable[[], Any], sizes: tuple[int, int], in_one: bool) -> None:
    caches = filled(new, 2, sizes)
    parts = CacheParts(caches)
    built = parts.build([new() for _ in caches], spans(parts, caches, 10, 16, TOKENS), None, 40, in_one)
    for cache, wanted in zip(built, caches, strict=True):
        assert cache.offset == TOKENS - 1
        for side, like in ((cache.keys, wanted.keys), (cache.values, wanted.values)):
            for found, given in zip(_arrays(side), _arrays(like), strict=True):
                assert found.shape[2] == 40
                np.testing.assert_array_equal(np.array(found[:, :, : TOKENS - 1]), np.array(given[:, :, : TOKENS - 1]))


def _arrays(side: Any) -> list[mx.array]:
    return [side] if isinstance(side, mx.array) else list(side)


@pytest.mark.parametrize("sizes", [(64, 64), (64, 32)])
def test_a_part_is_not_what_is_written_to_later(sizes: tuple[int, int]) -> None:
    # All of one head: MLX would take the whole buffer for its copy.
    caches = [plain()]
    caches[0].keys, caches[0].values = (mx.ones((1, 1, TOKENS, size)) for size in sizes)
    caches[0].offset = TOKENS
    mx.eval(caches[0].keys, caches[0].values)
    block = CacheParts(caches).cut(caches, 0, TOKENS)
    mx.eval(block.arrays)
    for side in (caches[0].keys, caches[0].values):
        np.array(side, copy=False)[...] = 5
    assert all(bool(mx.all(array == 1).item()) for layer in block.layers for array in layer)
