"""Prompt caches, one entry a layer: plain for one row, batched for several.

The cache classes are mlx-lm's. A batched cache is left-padded; a plain one is not, and is what a lone row
has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache, make_prompt_cache

from mlx_serving.actors.generation.mlx_engine.kv_format import KvFormat

Caches = list[Any]
"""One cache object of mlx-lm for each layer."""


def new_caches(model: Any, form: KvFormat | None = None) -> Caches:
    """Empty plain caches for one row. `form` replaces those of plain keys and values."""
    caches: Caches = make_prompt_cache(model)
    if form is None or form.bits is None:
        return caches
    return [form.new_cache() if type(cache) is KVCache else cache for cache in caches]


def are_mergeable(caches: Caches) -> bool:
    """Whether rows with such caches can be decoded together."""
    return all(hasattr(cache, "merge") and _parts_are_mergeable(cache) for cache in caches)


def merge(rows: Sequence[Caches]) -> Caches:
    """One batched cache from the plain caches of several rows, in order."""
    return [layer[0].merge(list(layer)) for layer in zip(*rows, strict=True)]


def extend(batched: Caches, added: Caches) -> None:
    """Append the rows of one batched cache to another, in place."""
    for cache, more in zip(batched, added, strict=True):
        cache.extend(more)


def keep(batched: Caches, indices: list[int]) -> None:
    """Drop all rows but these, in place; shared padding goes with them."""
    for cache in batched:
        cache.filter(indices)


def take(batched: Caches, index: int) -> Caches:
    """A plain copy of one row."""
    return [cache.extract(index) for cache in batched]


def states(caches: Caches) -> list[Any]:
    """Every array in them, for evaluation."""
    return [cache.state for cache in caches]


def copied(part: mx.array) -> mx.array:
    """The graph of a copy: `mx.contiguous` of most of a buffer is that buffer itself, in which others will write."""
    return part * 1


def start(arrays: list[Any]) -> None:
    """Set the computation of arrays (nested in lists and tuples) going."""
    mx.async_eval(arrays)  # type: ignore[no-untyped-call]


def _parts_are_mergeable(cache: Any) -> bool:
    return all(hasattr(part, "merge") for part in getattr(cache, "caches", ()))
