"""The model's forward pass over slabs: what its layers are given as caches, and how a pass is compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from mlx_serving.actors.generation.mlx_engine import launched_numbers
from mlx_serving.actors.generation.mlx_engine.attention import AttendingCache
from mlx_serving.actors.generation.mlx_engine.kv_slabs import SlabGroup
from mlx_serving.actors.generation.mlx_engine.slab_pass import CopyingPass, GroupPass, InPlace, InPlacePass

COMPILED_WIDTHS = (1, 2, 3, 5, 9, 16)
"""Tokens a row of passes that are compiled: few, for each takes as long as several passes."""
COMPILED_ROWS = (1, 8, 16, 32)
"""Rows of a group in compiled passes of one token a row, and multiples of the last: what our products take in one tile
of each size."""


class CurrentPass:
    """What the layers of one forward pass share. `offset`: one number for all rows, or [rows]."""

    def __init__(self) -> None:
        self.groups: list[GroupPass] = []
        self.offset: int | mx.array = 0


class SlabLayer(AttendingCache):
    """One layer of the batch, as the model sees it: a cache that holds nothing by itself."""

    def __init__(self, current: CurrentPass, index: int) -> None:
        self._pass = current
        self._index = index

    @property
    def offset(self) -> int | mx.array:
        """Tokens before this pass."""
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
        groups = self._pass.groups
        if len(groups) == 1:
            return groups[0].attend(self._index, queries, keys, values, scale, sinks)
        parts, start = [], 0
        for group in groups:
            own = slice(start, start + group.rows)
            parts.append(group.attend(self._index, queries[own], keys[own], values[own], scale, sinks))
            start = own.stop
        return mx.concatenate(parts)


class Program:
    """The model on slab layers."""

    def __init__(self, model: Any, layers: int, kernel: InPlace | None = None, is_compiled: bool = False) -> None:
        """`kernel` writes in place, for passes of as many tokens as it takes; `is_compiled`: such passes are, of some
        widths."""
        self.model = model
        self.kernel = kernel
        self._pass = CurrentPass()
        self._layers = [SlabLayer(self._pass, index) for index in range(layers)]
        self._in_place_step = _in_place_step(model, self._layers, self._pass, kernel)
        self.is_compiled = is_compiled
        self._compiled_step: Callable[..., mx.array] = mx.compile(self._in_place_step)

    @property
    def widest(self) -> int:
        """Tokens a row that a pass in place may have, 0 if there is none."""
        return self.kernel.most_tokens if self.kernel is not None else 0

    @property
    def joins_groups(self) -> bool:
        """Whether a pass takes all groups of rows in one operation: then a further one costs little."""
        return self.kernel is not None and self.kernel.stack is not None

    def padded(self, tokens: int) -> int:
        """Tokens a row that a pass had better have which needs so many."""
        wider = [width for width in COMPILED_WIDTHS if tokens <= width <= self.widest] if self.is_compiled else []
        return min(wider, default=tokens)

    def __call__(self, tokens: mx.array, groups: Sequence[SlabGroup], is_plain: bool) -> mx.array:
        """Logits [rows, tokens, vocabulary] of tokens [rows, tokens], the rows of all groups in order."""
        if tokens.shape[1] <= self.widest:
            slabs = [[(layer.keys, layer.values) for layer in group.layers] for group in groups]
            lengths = [group.lengths for group in groups]
            is_usual = self.is_compiled and is_plain and tokens.shape[1] in COMPILED_WIDTHS
            if is_usual and tokens.shape[1] == 1 and self.kernel is not None and self.kernel.takes_slotless_rows:
                return self._made_up(tokens, lengths, slabs)
            step = self._compiled_step if is_usual else self._in_place_step
            return step(tokens, [launched_numbers.integers(each) for each in lengths], slabs)
        lengths_now = [length for group in groups for length in group.lengths]
        is_even = len(set(lengths_now)) == 1
        self._pass.groups = [CopyingPass(group, tokens.shape[1]) for group in groups]
        self._pass.offset = lengths_now[0] if is_even else mx.array(lengths_now, dtype=mx.int32)
        return _run(self.model, tokens, self._layers, self._pass)

    def _made_up(self, tokens: mx.array, lengths: Sequence[Sequence[int]], slabs: list[Any]) -> mx.array:
        """By the compiled step, which is made for every number of rows, with rows that make up the number of each
        group: they have no tokens, and a slot at most that nobody has."""
        spare = [padded_rows(len(each)) - len(each) for each in lengths]
        padded = [launched_numbers.integers([*each, *[0] * more]) for each, more in zip(lengths, spare, strict=True)]
        if not any(spare):
            return self._compiled_step(tokens, padded, slabs)
        given: list[mx.array] = []
        start = 0
        for each, more in zip(lengths, spare, strict=True):
            given += [tokens[start : start + len(each)], mx.zeros((more, tokens.shape[1]), tokens.dtype)]
            start += len(each)
        logits = self._compiled_step(mx.concatenate(given), padded, slabs)
        wanted: list[mx.array] = []
        start = 0
        for each, more in zip(lengths, spare, strict=True):
            wanted.append(logits[start : start + len(each)])
            start += len(each) + more
        return wanted[0] if len(wanted) == 1 else mx.concatenate(wanted)


def numbers_of_rows(most: int) -> list[int]:
    """What groups of up to so many rows are made up to."""
    return sorted({padded_rows(rows) for rows in range(1, most + 1)})


def padded_rows(rows: int) -> int:
    """How many rows a compiled pass has for so many of a group."""
    most = COMPILED_ROWS[-1]
    return next((each for each in COMPILED_ROWS if rows <= each), -(-rows // most) * most)


def _in_place_step(
    model: Any, layers: list[SlabLayer], current: CurrentPass, kernel: InPlace | None
) -> Callable[..., mx.array]:
    """A pass as a function of arrays alone, so that it can be compiled."""

    def step(tokens: mx.array, lengths: list[mx.array], slabs: list[Any]) -> mx.array:
        assert kernel is not None
        if kernel.stack is not None and kernel.stack.holds():
            return kernel.stack(tokens, list(zip(lengths, slabs, strict=True)))
        current.groups = [InPlacePass(kernel.attend, *group) for group in zip(lengths, slabs, strict=True)]
        current.offset = lengths[0] if len(lengths) == 1 else mx.concatenate(lengths)
        return _run(model, tokens, layers, current)

    return step


def _run(model: Any, tokens: mx.array, layers: list[SlabLayer], current: CurrentPass) -> mx.array:
    logits: mx.array = model(tokens, cache=layers)
    # Nothing of the pass is kept alive.
    current.groups = []
    current.offset = 0
    return logits
