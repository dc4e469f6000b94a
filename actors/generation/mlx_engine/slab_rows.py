"""Rows in slabs, in groups by length: a long row makes no short one pay, in memory or in time.

A group's capacity is one of a geometric series; a row that fills its group moves to the next one, which copies
that row alone. The rows of a batch are those of the first group, then those of the second, and so on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from mlx_serving.actors.errors import ModelLoadFailed
from mlx_serving.actors.generation.mlx_engine import caches as prompt_caches
from mlx_serving.actors.generation.mlx_engine.attention import AttendingCache, redirect_attention
from mlx_serving.actors.generation.mlx_engine.caches import Caches
from mlx_serving.actors.generation.mlx_engine.kv_format import KvFormat
from mlx_serving.actors.generation.mlx_engine.kv_slabs import Places, SlabGroup
from mlx_serving.actors.generation.mlx_engine.rows_cache import MergedRows, Order, RowsCache

SMALLEST_CAPACITY = 512
CAPACITY_FACTOR = 4
_TOLERANCE = 0.05
"""Of the largest logit: half precision sums in another order."""


def capacity_for(tokens: int) -> int:
    """The smallest capacity of the series that holds so many."""
    capacity = SMALLEST_CAPACITY
    while capacity < tokens:
        capacity *= CAPACITY_FACTOR
    return capacity


class _Pass:
    """What the layers of one forward pass share: the groups with rows, and where their new tokens go."""

    def __init__(self) -> None:
        self.groups: list[SlabGroup] = []
        self.places: list[Places] = []
        self.offset: int | mx.array = 0

    def begin(self, groups: list[SlabGroup], tokens: int) -> None:
        self.groups = groups
        self.places = [Places.after(group.lengths, tokens) for group in groups]
        lengths = [length for group in groups for length in group.lengths]
        self.offset = lengths[0] if len(set(lengths)) == 1 else mx.array(lengths, dtype=mx.int32)


class SlabLayer(AttendingCache):
    """One layer of the batch, as the model sees it: a cache that holds nothing by itself."""

    def __init__(self, current: _Pass, index: int) -> None:
        self._pass = current
        self._index = index

    @property
    def offset(self) -> int | mx.array:
        """Tokens before this pass: one number for all rows, or [rows]."""
        return self._pass.offset

    def make_mask(self, *_: Any, **__: Any) -> None:
        """None: masking is part of attending."""
        return

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return keys, values

    def attend(
        self, queries: mx.array, keys: mx.array, values: mx.array, scale: float, sinks: mx.array | None
    ) -> mx.array:
        """Each group's rows attend to their own slab."""
        groups, places = self._pass.groups, self._pass.places
        if len(groups) == 1:
            return groups[0].attend(self._index, queries, keys, values, places[0], scale, sinks)
        parts, start = [], 0
        for group, place in zip(groups, places, strict=True):
            own = slice(start, start + len(place.lengths))
            parts.append(group.attend(self._index, queries[own], keys[own], values[own], place, scale, sinks))
            start = own.stop
        return mx.concatenate(parts)


class SlabRows:
    """The rows of one batch. See `RowsCache`."""

    can_roll_back = True

    def __init__(self, model: Any, templates: Caches, form: KvFormat) -> None:
        """`templates`: plain caches with at least one token, for the shapes of keys and values."""
        self._model = model
        self._templates = templates
        self._form = form
        self._groups: list[SlabGroup] = []
        self._pass = _Pass()
        self._layers = [SlabLayer(self._pass, index) for index in range(len(templates))]

    @property
    def nbytes(self) -> int:
        return sum(group.nbytes for group in self._groups)

    def fresh(self) -> SlabRows:
        return SlabRows(self._model, self._templates, self._form)

    @property
    def lengths(self) -> list[int]:
        """Of all rows, in order."""
        return [length for group in self._groups for length in group.lengths]

    def join(self, added: Sequence[Caches]) -> Order:
        tags = self._tags()
        count = sum(map(len, tags.values()))
        for number, caches in enumerate(added):
            length = caches[0].offset
            group = self._group(capacity_for(length + 1))
            group.add(caches, length)
            tags.setdefault(group.capacity, []).append(count + number)
        return self._flat(tags)

    def keep(self, indices: Sequence[int]) -> Order:
        tags = self._tags()
        kept = set(indices)
        for group in self._groups:
            order = tags[group.capacity]
            for slot in reversed(range(len(order))):
                if order[slot] not in kept:
                    group.remove(slot)
                    order[slot] = order[-1]
                    order.pop()
        return self._flat(tags)

    def take(self, index: int) -> Caches:
        group, slot = self._find(index)
        return group.take(slot)

    def view(self, index: int) -> Caches:
        group, slot = self._find(index)
        return group.view(slot)

    def reserve(self, tokens: int) -> Order | None:
        if all(max(group.lengths, default=0) + tokens <= group.capacity for group in self._groups):
            return None
        tags = self._tags()
        for group in list(self._groups):
            order = tags[group.capacity]
            for slot in reversed(range(len(order))):
                length = group.lengths[slot]
                if length + tokens > group.capacity:
                    larger = self._group(capacity_for(length + tokens))
                    larger.add(group.take(slot), length)
                    tags.setdefault(larger.capacity, []).append(order[slot])
                    group.remove(slot)
                    order[slot] = order[-1]
                    order.pop()
        return self._flat(tags)

    def forward(self, tokens: mx.array) -> mx.array:
        filled = [group for group in self._groups if group.lengths]
        self._pass.begin(filled, tokens.shape[1])
        logits: mx.array = self._model(tokens, cache=self._layers)
        for group in filled:
            group.lengths = [length + tokens.shape[1] for length in group.lengths]
        return logits

    def drop(self, counts: Sequence[int]) -> None:
        left = iter(counts)
        for group in self._groups:
            group.lengths = [length - next(left) for length in group.lengths]

    def _group(self, capacity: int) -> SlabGroup:
        for group in self._groups:
            if group.capacity == capacity:
                return group
        group = SlabGroup(capacity, self._form, self._templates)
        self._groups.append(group)
        return group

    def _find(self, index: int) -> tuple[SlabGroup, int]:
        for group in self._groups:
            if index < len(group.lengths):
                return group, index
            index -= len(group.lengths)
        raise IndexError(index)

    def _tags(self) -> dict[int, list[int]]:
        """The number of each row, by the capacity of its group."""
        numbers = iter(range(len(self.lengths)))
        return {group.capacity: [next(numbers) for _ in group.lengths] for group in self._groups}

    def _flat(self, tags: dict[int, list[int]]) -> Order:
        return [number for group in self._groups for number in tags.get(group.capacity, ())]


def rows_cache_for(model: Any, kv_type: str) -> tuple[RowsCache, KvFormat]:
    """Slabs where the model computes the same with them; otherwise mlx-lm's batched caches.

    Raises ModelLoadFailed where `kv_type` asks for what these cannot hold.
    """
    caches = prompt_caches.new_caches(model)
    reason = "not all of its layers keep plain keys and values"
    if all(type(cache) is KVCache for cache in caches) and redirect_attention(model):
        expected = _probe(model, caches)
        rows = SlabRows(model, caches, KvFormat())
        reason = "its attention does not go through the one function that reads them"
        if _agrees(rows, expected, caches):
            form = KvFormat.of(kv_type, {part.shape[3] for cache in caches for part in (cache.keys, cache.values)})
            return SlabRows(model, [form.converted(cache) for cache in caches], form), form
    if kv_type != "model":
        raise ModelLoadFailed(f"generation.kv_type is {kv_type}, but this model's caches stay as they are: {reason}")
    return MergedRows(model), KvFormat()


_PROBE = [3, 1, 4, 1, 5]


def _probe(model: Any, caches: Caches) -> mx.array:
    """Fill plain caches with a few tokens; the logits after each of the last two, [2, vocabulary]."""
    model(mx.array([_PROBE[:-2]], dtype=mx.uint32), cache=caches)
    for cache in caches:
        mx.eval(cache.keys, cache.values)
    logits: mx.array = model(mx.array([_PROBE[-2:]], dtype=mx.uint32), cache=caches)
    return logits[0]


def _agrees(rows: SlabRows, expected: mx.array, caches: Caches) -> bool:
    """Whether slabs give the same logits, for two rows of different lengths at once."""

    def first(tokens: int) -> Caches:
        copies = []
        for cache in caches:
            copy: Any = KVCache()  # type: ignore[no-untyped-call]
            copy.keys, copy.values = cache.keys[:, :, :tokens], cache.values[:, :, :tokens]
            copy.offset = tokens
            copies.append(copy)
        return copies

    done = len(_PROBE) - 2
    rows.join([first(done), first(done + 1)])
    try:
        logits = rows.forward(mx.array([[_PROBE[done]], [_PROBE[done + 1]]], dtype=mx.uint32))[:, 0]
    except Exception:  # the probe of an architecture that wants something else of its caches
        return False
    largest = mx.max(mx.abs(expected.astype(mx.float32)))
    difference = mx.max(mx.abs(logits.astype(mx.float32) - expected.astype(mx.float32)))
    return bool((difference <= _TOLERANCE * largest).item())
