"""Keys and values of rows of similar length: for each layer one slab [slots, heads, capacity, head size].

Row i of a group is in slot i, its tokens in columns 0 to its length, so every row is written at its own end and
rolled back by a smaller length. What stands behind a row's end is stale and masked. Slots double when they run out,
which copies the whole group, and are reused after; a row that leaves is replaced by the last one, and only that one is
copied.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

from mlx_serving.actors.generation.mlx_engine import caches as prompt_caches
from mlx_serving.actors.generation.mlx_engine.caches import Caches
from mlx_serving.actors.generation.mlx_engine.kv_format import KvFormat, Slab


class LayerSlab:
    """One layer's keys and values of one group."""

    def __init__(self, keys: Slab, values: Slab) -> None:
        self.keys, self.values = keys, values

    @classmethod
    def empty(cls, like: Any, slots: int, capacity: int) -> LayerSlab:
        """`like`: keys and values of one row, for shapes and types."""

        def zeros(part: mx.array) -> mx.array:
            return mx.zeros((slots, part.shape[1], capacity, part.shape[3]), part.dtype)

        return cls(tree_map(zeros, like.keys), tree_map(zeros, like.values))

    def put(self, slot: int, cache: Any, length: int) -> None:
        """Copy the first `length` tokens of a row's cache into a slot."""
        if length:
            for slab, side in self._sides(cache.keys, cache.values):
                slab[slot : slot + 1, :, :length] = side[:, :, :length]

    def put_back(self, slot: int, keys: Slab, values: Slab, length: int) -> None:
        for slab, side in self._sides(keys, values):
            slab[slot : slot + 1, :, :length] = side

    def row(self, slot: int, length: int) -> tuple[Slab, Slab]:
        """A copy of a row's keys and values, [1, heads, length, head size]."""

        def own(part: mx.array) -> mx.array:
            return prompt_caches.copied(part[slot : slot + 1, :, :length])

        return tree_map(own, self.keys), tree_map(own, self.values)

    def shown(self, slot: int, length: int) -> tuple[Slab, Slab]:
        """A row's keys and values, in place."""

        def part(slab: mx.array) -> mx.array:
            return slab[slot : slot + 1, :, :length]

        return tree_map(part, self.keys), tree_map(part, self.values)

    def grow(self, slots: int) -> None:
        def grown(part: mx.array) -> mx.array:
            return mx.concatenate([part, mx.zeros((slots - part.shape[0], *part.shape[1:]), part.dtype)])

        self.keys, self.values = tree_map(grown, self.keys), tree_map(grown, self.values)

    def shrink(self, slots: int) -> None:
        def first(part: mx.array) -> mx.array:
            return prompt_caches.copied(part[:slots])

        self.keys, self.values = tree_map(first, self.keys), tree_map(first, self.values)

    def append(self, keys: Slab, values: Slab, column: int | mx.array) -> None:
        """Write new tokens, [rows, heads, tokens, head size], to each row, from one column on or at those of
        [rows * tokens]."""
        for slab, new in self._sides(keys, values):
            rows, heads, tokens, _ = new.shape
            if isinstance(column, int):
                slab[:rows, :, column : column + tokens] = new
            else:
                row_of = mx.repeat(mx.arange(rows), tokens)
                slab[row_of, :, column] = new.swapaxes(1, 2).reshape(rows * tokens, heads, -1)

    def read(self, rows: int, span: int) -> tuple[Slab, Slab]:
        def part(slab: mx.array) -> mx.array:
            return slab[:rows, :, :span]

        return tree_map(part, self.keys), tree_map(part, self.values)

    def _sides(self, keys: Slab, values: Slab) -> list[tuple[mx.array, mx.array]]:
        """Each array of this slab with its counterpart."""
        if isinstance(self.keys, mx.array):
            return [(self.keys, keys), (self.values, values)]
        return [*zip(self.keys, keys, strict=True), *zip(self.values, values, strict=True)]


class SlabGroup:
    """Rows of similar length; `lengths[i]` is that of the row in slot i."""

    def __init__(self, capacity: int, form: KvFormat, templates: Caches) -> None:
        """`templates`: any row's keys and values, a layer each, for their shapes."""
        self.capacity = capacity
        self._templates = templates
        self.lengths: list[int] = []
        self.layers: list[LayerSlab] = []
        self.slots = 0
        self.form = form

    @property
    def nbytes(self) -> int:
        parts: list[mx.array] = []
        for layer in self.layers:
            tree_map(parts.append, (layer.keys, layer.values))
        return sum(part.nbytes for part in parts)

    @property
    def slot_bytes(self) -> int:
        """Of the slabs of all layers, allocated or not."""
        parts: list[mx.array] = []
        for like in self._templates:
            tree_map(parts.append, (like.keys, like.values))
        return sum(part.nbytes // part.shape[2] for part in parts) * self.capacity

    @property
    def arrays(self) -> list[Slab]:
        return [side for layer in self.layers for side in (layer.keys, layer.values)]

    def allocate(self, slots: int) -> None:
        """Slabs with so many slots, while there are none yet."""
        self.slots = slots
        self.layers = [LayerSlab.empty(like, slots, self.capacity) for like in self._templates]

    def make_room(self, rows: int) -> None:
        """Slots for so many more rows: at once, for what grows is copied."""
        needed = len(self.lengths) + rows
        if not self.layers:
            self.allocate(1 << (needed - 1).bit_length())
        elif needed > self.slots:
            self.slots = 1 << (needed - 1).bit_length()
            for layer in self.layers:
                layer.grow(self.slots)

    def shrink(self) -> None:
        """Give up half of the slots or more, if a quarter of them would do for the rows that there are."""
        if 4 * len(self.lengths) > self.slots:
            return
        self.slots = 2 << (len(self.lengths) - 1).bit_length()
        for layer in self.layers:
            layer.shrink(self.slots)
        prompt_caches.start(self.arrays)

    def add(self, caches: Caches, length: int) -> None:
        """Copy one row in, behind the others. The first one's caches become the slabs, if they have their form."""
        if not self.layers and all(_is_slab(cache, self.capacity) for cache in caches):
            self.slots = 1
            self.layers = [LayerSlab(cache.keys, cache.values) for cache in caches]
            self.lengths.append(length)
            return
        self.make_room(1)
        for layer, cache in zip(self.layers, caches, strict=True):
            layer.put(len(self.lengths), cache, length)
        self.lengths.append(length)

    def remove(self, slot: int) -> None:
        """The last row takes the place of the one that goes."""
        last = len(self.lengths) - 1
        length = self.lengths.pop()
        if slot == last:
            return
        copies = [layer.row(last, length) for layer in self.layers]
        # A slab that a view still waits to be read from would be copied whole when it is written.
        mx.eval(copies)
        for layer, (keys, values) in zip(self.layers, copies, strict=True):
            layer.put_back(slot, keys, values, length)
        self.lengths[slot] = length

    def take(self, slot: int) -> Caches:
        """A copy of one row as plain caches, on its way at once: a step that writes in place may follow."""
        copies = [layer.row(slot, self.lengths[slot]) for layer in self.layers]
        prompt_caches.start(copies)
        return [self._cache(sides, slot) for sides in copies]

    def view(self, slot: int) -> Caches:
        """One row as plain caches that are no copies."""
        return [self._cache(layer.shown(slot, self.lengths[slot]), slot) for layer in self.layers]

    def _cache(self, sides: tuple[Slab, Slab], slot: int) -> Any:
        cache = self.form.new_cache()
        cache.keys, cache.values = sides
        cache.offset = self.lengths[slot]
        return cache


def _is_slab(cache: Any, capacity: int) -> bool:
    """Whether a row's plain cache has the form of a slab with one slot."""
    return isinstance(cache.keys, mx.array) and cache.keys.shape[2] == capacity
