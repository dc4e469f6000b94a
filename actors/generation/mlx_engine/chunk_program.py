"""Chunks of one prompt through the model compiled, on caches of the row's own that are written in place: for CUDA.

There a pass that MLX has not met costs its host three times what a known one does: it is traced, and its graph is
instantiated. Chunks come in ever new sizes behind ever new numbers of tokens. So they are padded to a few widths, the
caches have the capacities of slabs, and the kernels read from memory how many tokens are before them. What is padded
is causally behind every real token, and is written over by what follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import structlog

from mlx_serving.actors.clock import Clock
from mlx_serving.actors.generation.mlx_engine import caches as prompt_caches
from mlx_serving.actors.generation.mlx_engine import chunk_attention, launched_numbers, tensor_cores
from mlx_serving.actors.generation.mlx_engine.caches import Caches
from mlx_serving.actors.generation.mlx_engine.rows_cache import RowsCache
from mlx_serving.actors.generation.mlx_engine.slab_pass import InPlacePass
from mlx_serving.actors.generation.mlx_engine.slab_program import CurrentPass, SlabLayer
from mlx_serving.actors.generation.mlx_engine.slab_rows import (
    SlabRows,
    agree,
    capacity_for,
    probe_ids,
    rehearsed_capacities,
)

_log = structlog.get_logger(actor="engine")

WIDTHS = (16, 32, 64, 128, 256, 512, 1024, 2048)
_MOST_PLACES = 1.5
"""Places of a pass in units of its tokens, from which two passes take less time; small ones take the same."""
_EASILY_PADDED = 128
_REHEARSED_WIDTHS, _REHEARSED_ENDINGS = WIDTHS[:-2], WIDTHS[:2]
"""Of chunks beside rows that decode, and of what is left behind a cached prefix."""


def passes(tokens: int) -> list[int]:
    """How many tokens of a chunk each pass takes, most of them exactly a width."""
    parts = []
    while tokens:
        padded = min((width for width in WIDTHS if width >= tokens), default=None)
        if padded is not None and (padded <= _EASILY_PADDED or padded <= _MOST_PLACES * tokens):
            parts.append(tokens)
            return parts
        parts.append(max(width for width in WIDTHS if width <= tokens))
        tokens -= parts[-1]
    return parts


def within(budget: int, tokens: int) -> int:
    """How many of a prompt's tokens go in one pass beside rows that decode."""
    count = min(budget, tokens)
    return passes(count)[0] if count else 0


class ChunkProgram:
    """The model over chunks of one row."""

    def __init__(self, model: Any, templates: Caches) -> None:
        """`templates`: plain caches with at least one token, for the shapes of keys and values."""
        self._model = model
        self._templates = templates
        self._pass = CurrentPass()
        self._layers = [SlabLayer(self._pass, index) for index in range(len(templates))]
        self._filling = mx.compile(lambda *arrays: self._step(*arrays)[1])
        self._ending = mx.compile(lambda *arrays: self._step(*arrays)[0])
        self._started: mx.array | None = None

    def new_caches(self) -> Caches:
        """Empty ones of one row."""
        return prompt_caches.new_caches(self._model)

    def fill(self, ids: Sequence[int], caches: Caches, room: int) -> None:
        """Set ids going through the model. The caches get room for `room` tokens in all, if they have not."""
        for count in passes(len(ids)):
            found = self._through(self._filling, ids[:count], caches, room)
            prompt_caches.start([found])
            self._started = found
            ids = ids[count:]

    def wait(self) -> None:
        """For what was set going."""
        started, self._started = self._started, None
        if started is not None:
            mx.eval(started)

    def fill_all(self, ids: Sequence[int], caches: Caches, room: int) -> mx.array:
        """The graph of the logits [1, vocabulary] after ids, at most as many as the greatest width."""
        return self._through(self._ending, ids, caches, room)[:, len(ids) - 1]

    def rehearse(self, clock: Clock, longest: int) -> list[tuple[int, float]]:
        """Have compiled what most prompts need, of up to `longest` tokens. Returns tokens of chunks, and how many
        seconds each took then."""
        costs = []
        for capacity in rehearsed_capacities(longest):
            caches = self.new_caches()
            for width in _REHEARSED_WIDTHS:
                for _ in range(2):
                    for cache in caches:
                        cache.offset = 0
                    began = clock()
                    self.fill([0] * width, caches, capacity)
                    self.wait()
                    seconds = clock() - began
                costs.append((width, seconds))
            for width in _REHEARSED_ENDINGS:
                mx.eval(self.fill_all([0] * width, caches, capacity))
        return costs

    def _through(self, step: Callable[..., mx.array], ids: Sequence[int], caches: Caches, room: int) -> mx.array:
        width = min(width for width in WIDTHS if width >= len(ids))
        self._make_room(caches, room)
        # Together, as they may come by one launch.
        told = launched_numbers.integers([*ids, *[0] * (width - len(ids)), caches[0].offset])
        found = step(
            told[None, :width],
            told[width:],
            [cache.keys for cache in caches],
            [cache.values for cache in caches],
        )
        for cache in caches:
            cache.offset += len(ids)
        return found

    def _step(
        self, tokens: mx.array, lengths: mx.array, keys: list[mx.array], values: list[mx.array]
    ) -> tuple[mx.array, mx.array]:
        """Logits, and what the last layer attended to, which stands for all that is written."""
        group = _LastAttended(chunk_attention.attend_in_place, lengths, list(zip(keys, values, strict=True)))
        self._pass.groups, self._pass.offset = [group], lengths
        logits: mx.array = self._model(tokens, cache=self._layers)
        self._pass.groups, self._pass.offset = [], 0
        assert group.attended is not None
        return logits, group.attended

    def _make_room(self, caches: Caches, room: int) -> None:
        capacity = capacity_for(room)
        for cache, like in zip(caches, self._templates, strict=True):
            if cache.keys is not None and cache.keys.shape[2] == capacity:
                return
            cache.keys, cache.values = (
                _with_capacity(side, cache.offset, capacity, shape)
                for side, shape in ((cache.keys, like.keys), (cache.values, like.values))
            )


class _LastAttended(InPlacePass):
    """Keeps hold of what the last layer attended to."""

    attended: mx.array | None = None

    def attend(self, layer: int, *arguments: Any) -> mx.array:
        self.attended = super().attend(layer, *arguments)
        return self.attended


def _with_capacity(side: mx.array | None, tokens: int, capacity: int, like: mx.array) -> mx.array:
    held = [] if side is None else [side[:, :, :tokens]]
    spare = mx.zeros((1, like.shape[1], capacity - (tokens if held else 0), like.shape[3]), like.dtype)
    return mx.concatenate([*held, spare], axis=2) if held else spare


def chunk_program_for(model: Any, rows: RowsCache) -> ChunkProgram | None:
    """For a model on slabs as they are whose passes are compiled, if its heads suit the kernel and it says the same."""
    if (
        not isinstance(rows, SlabRows)
        or rows.form.bits is not None
        or not rows.program.is_compiled
        or rows.program.widest < chunk_attention.TILE_TOKENS
    ):
        return None
    sides = [side for cache in rows.templates for side in (cache.keys, cache.values)]
    is_half = all(side.dtype in tensor_cores.TYPES for side in sides)
    if not is_half or not chunk_attention.suits({side.shape[3] for side in sides}):
        return None
    program = ChunkProgram(model, rows.templates)
    return program if _agrees(program, model) else None


def _agrees(program: ChunkProgram, model: Any) -> bool:
    """Whether a prompt that the kernel takes in parts of several widths ends in the same logits as by the model
    itself."""
    ids = probe_ids(model, 3 * chunk_attention.TILE_TOKENS)
    first, second = chunk_attention.TILE_TOKENS + 4, 2 * chunk_attention.TILE_TOKENS + 8
    expected = model(mx.array([ids], dtype=mx.int32), cache=program.new_caches())[:, -1]
    try:
        caches = program.new_caches()
        program.fill(ids[:first], caches, len(ids))
        program.fill(ids[first:second], caches, len(ids))
        if agree(program.fill_all(ids[second:], caches, len(ids)), expected):
            return True
        _log.warning("prompts are not compiled", reason="the model says something else with its chunks")
    except Exception as error:  # a kernel that does not compile
        _log.warning("prompts are not compiled", reason=f"{type(error).__name__}: {error}")
    return False
