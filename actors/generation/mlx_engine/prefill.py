"""Taking prompts in, a chunk at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from mlx_serving.actors.generation.mlx_engine import caches as prompt_caches
from mlx_serving.actors.generation.mlx_engine.row import Row


def shares(unfilled: Sequence[int], budget: int) -> list[int]:
    """Divide a budget of tokens over prompts: equal parts; what short ones leave goes to long ones."""
    given = [0] * len(unfilled)
    order = sorted(range(len(unfilled)), key=unfilled.__getitem__)
    for place, index in enumerate(order):
        given[index] = min(unfilled[index], budget // (len(order) - place))
        budget -= given[index]
    return given


def fill(model: Callable[..., Any], row: Row, count: int) -> None:
    """Set the next `count` ids of a row going through the model, on caches of its own."""
    if row.caches is None:
        row.caches = prompt_caches.new_caches(model)
    if count:
        chunk = mx.array(row.ids[row.filled : row.filled + count], dtype=mx.uint32)
        model(chunk[None], cache=row.caches)
        prompt_caches.start(prompt_caches.states(row.caches))
        row.filled += count
