"""What the caches of one row are made of, cut into parts that are kept, and put together again.

Plain keys and values, quantised or not, can be cut at any token. Every other cache of mlx-lm (windows, states of
recurrent layers) stands for one exact prefix, and is kept whole.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import attrs
import mlx.core as mx
from mlx_lm.models import cache as mlx_lm_cache
from mlx_lm.models.cache import KVCache, QuantizedKVCache, RotatingKVCache

from mlx_serving.actors.generation.mlx_engine import caches as prompt_caches
from mlx_serving.actors.generation.mlx_engine.caches import Caches
from mlx_serving.actors.generation.prefix.blocks import Span

TOKENS_AXIS = 2
_HOST_BYTES_PER_TOKEN = 48
"""What the index itself takes; all there is to count for models without keys and values."""


Layers = tuple[tuple[mx.array, ...], ...]
"""For each layer that has keys and values its arrays [1, heads, tokens, size]: two, or of a quantised cache three for
keys and three for values."""


@attrs.define(eq=False)
class KvBlock:
    """Keys and values of some tokens, by layers, packed, or both."""

    _layers: Layers | None
    nbytes: int
    packed: mx.array | None = None
    """All arrays one below the other, [arrays, heads, tokens, size], keys and values in turn: if they are of one
    form."""

    @property
    def layers(self) -> Layers:
        """Of a packed block parts of it."""
        if self._layers is None:
            assert self.packed is not None
            sides = [self.packed[i : i + 1] for i in range(self.packed.shape[0])]
            self._layers = tuple(zip(sides[::2], sides[1::2], strict=True))
        return self._layers

    @property
    def arrays(self) -> list[mx.array]:
        """What is to be computed."""
        return [self.packed] if self.packed is not None else [array for layer in self.layers for array in layer]


@attrs.frozen(eq=False)
class Snapshot:
    """The states of all other layers: the name of each cache's class in mlx-lm, and its state."""

    states: tuple[tuple[str, Any], ...]
    nbytes: int


class CacheParts:
    """How the caches of one model fall into the two kinds."""

    def __init__(self, caches: Caches) -> None:
        """`caches`: empty ones of one row."""
        self._plain = tuple(i for i, cache in enumerate(caches) if type(cache) in (KVCache, QuantizedKVCache))
        self._others = tuple(i for i in range(len(caches)) if i not in self._plain)
        self.is_known = all(_is_known(caches[i]) for i in self._others)
        """False for caches of a kind that is not mlx-lm's own: they are left alone."""

    @property
    def has_blocks(self) -> bool:
        return bool(self._plain)

    @property
    def has_states(self) -> bool:
        return bool(self._others)

    def length(self, caches: Caches) -> int | None:
        """Tokens that caches hold; None if no layer tells."""
        return int(caches[self._plain[0]].offset) if self._plain else None

    def bytes_per_token(self, caches: Caches) -> int:
        """Of blocks cut from these, which are not empty."""
        arrays = [array for i in self._plain for array in _arrays(caches[i])]
        return _HOST_BYTES_PER_TOKEN + sum(array.nbytes // array.shape[TOKENS_AXIS] for array in arrays)

    def cut(self, caches: Caches, start: int, stop: int) -> KvBlock:
        """A copy of tokens [start, stop), still to be computed. It holds on to nothing but itself then."""
        layers = [tuple(array[:, :, start:stop] for array in _arrays(caches[i])) for i in self._plain]
        return self.block(layers, stop - start)

    def block(self, layers: Sequence[tuple[mx.array, ...]], tokens: int) -> KvBlock:
        """With a copy of these arrays, still to be computed."""
        arrays = [array for layer in layers for array in layer]
        nbytes = _HOST_BYTES_PER_TOKEN * tokens + sum(array.nbytes for array in arrays)
        if len({(array.shape, array.dtype) for array in arrays}) != 1:
            return KvBlock(tuple(tuple(map(prompt_caches.copied, layer)) for layer in layers), nbytes)
        return self.packed_block(mx.concatenate(arrays), tokens)

    def packed_block(self, packed: mx.array, tokens: int) -> KvBlock:
        """Of arrays one below the other, keys and values in turn. ValueError if they are no pairs."""
        if packed.shape[0] % 2:
            raise ValueError(f"{packed.shape[0]} arrays are no pairs")
        return KvBlock(None, _HOST_BYTES_PER_TOKEN * tokens + packed.nbytes, packed)

    def fits(self, block: KvBlock, tokens: int, caches: Caches) -> bool:
        """Whether a block that came from elsewhere has the form of `caches`, which may be empty."""
        sides = [6 if type(caches[i]) is QuantizedKVCache else 2 for i in self._plain]
        if block.packed is not None:
            count, _, held, _ = block.packed.shape
            return held == tokens and sides == [2] * (count // 2)
        shaped = all(each.ndim == 4 and each.shape[TOKENS_AXIS] == tokens for layer in block.layers for each in layer)
        return shaped and [len(layer) for layer in block.layers] == sides

    def snapshot(self, caches: Caches) -> Snapshot:
        """A copy of the states, still to be computed."""
        states = tuple((type(caches[i]).__name__, _mapped(_state(caches[i]), mx.contiguous)) for i in self._others)
        return Snapshot(states, sum(array.nbytes for array in state_arrays(states)))

    def build(
        self,
        caches: Caches,
        spans: Sequence[Span[KvBlock]],
        snapshot: Snapshot | None,
        room: int,
        in_one: bool = False,
    ) -> Caches:
        """Fill empty caches with the tokens of `spans`, with room for `room` tokens in all; nothing is waited for.

        `in_one`: the caches may be parts of one array, which MLX copies when it writes to them. Its copy is set going.
        """
        packed = [_cut_out(span, span.block.payload.packed) for span in spans if span.block.payload.packed is not None]
        if in_one and spans and len(packed) == len(spans):
            whole = _joined(packed, spans[-1].stop, room)
            prompt_caches.start([whole])  # while the pass that reads it is still built
            for place, i in enumerate(self._plain):
                caches[i].keys, caches[i].values = (whole[at : at + 1] for at in (2 * place, 2 * place + 1))
                caches[i].offset = spans[-1].stop
        elif spans:
            for place, i in enumerate(self._plain):
                _fill(caches[i], [_of(span, place) for span in spans], spans[-1].stop, room)
        for place, i in enumerate(self._others):
            assert snapshot is not None
            name, state = snapshot.states[place]
            caches[i] = getattr(mlx_lm_cache, name).from_state(_mapped(state, copy.copy))
        return caches


def state_arrays(tree: Any) -> list[mx.array]:
    """Every array in a tree of lists and tuples, in order."""
    if isinstance(tree, mx.array):
        return [tree]
    return [array for each in tree for array in state_arrays(each)] if isinstance(tree, list | tuple) else []


def is_cache_class(name: str) -> bool:
    """Whether states of this class may be loaded."""
    kind = getattr(mlx_lm_cache, name, None)
    return isinstance(kind, type) and issubclass(kind, mlx_lm_cache._BaseCache)


def _is_known(cache: Any) -> bool:
    parts = getattr(cache, "caches", ())
    return type(cache) is getattr(mlx_lm_cache, type(cache).__name__, None) and all(map(_is_known, parts))


def _arrays(cache: Any) -> tuple[mx.array, ...]:
    sides = (cache.keys, cache.values)
    return tuple(array for side in sides for array in side) if type(cache) is QuantizedKVCache else sides


def _of(span: Span[KvBlock], layer: int) -> tuple[mx.array, ...]:
    """One layer's arrays of a span."""
    return tuple(_cut_out(span, array) for array in span.block.payload.layers[layer])


def _cut_out(span: Span[KvBlock], array: mx.array) -> mx.array:
    """What an array of a span's block has of the span."""
    first, count = span.offset, span.stop - span.start
    return array if count == array.shape[TOKENS_AXIS] else array[:, :, first : first + count]


def _fill(cache: Any, parts: Sequence[tuple[mx.array, ...]], tokens: int, room: int) -> None:
    """With the parts of each of its arrays, which follow each other up to `tokens`, and room for `room` in all."""
    joined = [_joined(side, tokens, room) for side in zip(*parts, strict=True)]
    half = len(joined) // 2
    cache.keys, cache.values = (joined[0], joined[1]) if half == 1 else (tuple(joined[:half]), tuple(joined[half:]))
    cache.offset = tokens


def _joined(parts: Sequence[mx.array], tokens: int, room: int) -> mx.array:
    """One concatenation along the tokens, with zeros behind to make up `room`."""
    count, heads, _, size = parts[0].shape
    spare = mx.zeros((count, heads, max(0, room - tokens), size), parts[0].dtype)
    return mx.concatenate([*parts, spare], axis=TOKENS_AXIS)


def _state(cache: Any) -> Any:
    """The state, of a window without the tokens that have left it."""
    state = cache.state
    if type(cache) is not RotatingKVCache or cache.keep or cache.keys is None:
        return state
    keys, values, offset, keep, size, end = state
    if end != keys.shape[TOKENS_AXIS] or end <= size:
        return state
    return keys[:, :, -size:], values[:, :, -size:], offset, keep, size, size


def _mapped(tree: Any, change: Any) -> Any:
    """The same tree of fresh lists and tuples with changed arrays."""
    if isinstance(tree, mx.array):
        return change(tree)
    if isinstance(tree, list | tuple):
        return type(tree)([_mapped(each, change) for each in tree])
    return tree
