"""Decoder layers of the Llama family as two operations around their attention.

The cache and the attention stay what they are for the model: the layer asks them exactly as mlx-lm's does. A layer
whose parts are no longer those it was made of, because adapters were put around them for instance, or whose input is
not float32, takes mlx-lm's way.
"""

from __future__ import annotations

import sys
from itertools import chain
from typing import Any

import mlx.core as mx
import mlx.nn
from mlx_lm.models.rope_utils import Llama3RoPE

from mlx_serving.native.kernels import layers
from mlx_serving.native.kernels.operations import OPERATIONS

_nn: Any = mlx.nn

FAMILIES = ("mlx_lm.models.llama", "mlx_lm.models.qwen2")
"""Modules whose `TransformerBlock` is x + attention(norm(x)), then h + down(silu(gate(norm(h))) * up(norm(h)))."""

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_NORMS = ("input_layernorm", "post_attention_layernorm")

_fused_classes: dict[type, type] = {}


def fused(theirs: type) -> type:
    """The class of ours for a layer of this class."""
    if theirs not in _fused_classes:
        _fused_classes[theirs] = _fused_class(theirs)
    return _fused_classes[theirs]


def _fused_class(theirs: type) -> type:
    home = sys.modules[theirs.__module__]

    class FusedBlock(theirs):  # type: ignore[misc]
        """A decoder layer. `_fused` holds the operations and what they were made of."""

        def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> Any:
            block, makings = self._fused
            attention = self["self_attn"]
            if x.dtype != mx.float32 or not makings.are_of(self):
                return super().__call__(x, mask, cache)
            first = layers.offset_array(0 if cache is None else cache.offset)
            if first is None:
                return super().__call__(x, mask, cache)
            queries, keys, values = block.enter(x, first)
            if cache is not None:
                keys, values = cache.update_and_fetch(keys, values)
            attended = home.scaled_dot_product_attention(
                queries, keys, values, cache=cache, scale=attention.scale, mask=mask
            )
            return block.leave(x, attended.astype(mx.float32))

    return FusedBlock


def fuse(module: Any) -> bool:
    """Make this layer one of ours if its parts allow it; says whether they did. Its parts are ours already."""
    if type(module).__module__ not in FAMILIES or type(module).__name__ != "TransformerBlock":
        return False
    linear = [_linear(home[name]) for home, name in places(module)]
    norms = [module[name] for name in _NORMS]
    rope = _rope(module.self_attn.rope)
    if None in linear or rope is None or any(type(norm) is not layers.NativeRMSNorm for norm in norms):
        return False
    attention = module.self_attn
    block = OPERATIONS.Block(
        linear,
        [norm.weight for norm in norms],
        [norm.eps for norm in norms],
        attention.n_heads,
        attention.n_kv_heads,
        *rope,
    )
    module.__class__ = fused(type(module))
    # Not an entry of the module, which would be taken for a parameter.
    object.__setattr__(module, "_fused", (block, Makings(module)))
    return True


def unfuse(module: Any) -> bool:
    """Give mlx-lm's class back; says whether the layer was one of ours."""
    if "_fused" not in vars(module):
        return False
    module.__class__ = type(module).__mro__[1]
    object.__delattr__(module, "_fused")
    return True


def places(block: Any) -> list[tuple[Any, str]]:
    """Where the linear layers of a decoder layer stand: a module, and the name in it."""
    return [*((block["self_attn"], name) for name in _ATTENTION), *((block["mlp"], name) for name in _MLP)]


class Makings:
    """What a decoder layer is made of: its modules, their classes and their arrays.

    All are kept alive, so that nothing is taken for what stood in its place before. A layer is asked about at every
    step, and therefore compared in C, by numbers.
    """

    def __init__(self, block: Any) -> None:
        attention = block["self_attn"]
        computing = (*(home[name] for home, name in places(block)), *(block[name] for name in _NORMS))
        self._homes = (attention, block["mlp"], *computing)
        self._typed = (*computing, attention["rope"])
        self._parts = self._parts_of(block)
        self._ids = [*map(id, self._parts)]
        self._classes = [*map(type, self._typed)]

    def are_of(self, block: Any) -> bool:
        """Whether the layer is still made of these; adapters, for instance, change it."""
        return self._ids == [*map(id, self._parts_of(block))] and self._classes == [*map(type, self._typed)]

    def _parts_of(self, block: Any) -> list[Any]:
        return [*chain.from_iterable(map(dict.values, (block, *self._homes)))]


def _linear(layer: Any) -> tuple[list[mx.array], mx.array | None, int, int] | None:
    bias = layer.get("bias")
    if type(layer) is layers.NativeQuantizedLinear:
        return [layer.weight, layer.scales, layer.biases], bias, layer.group_size, layer.bits
    return ([layer.weight], bias, 0, 0) if type(layer) is layers.NativeLinear else None


def _rope(rope: Any) -> tuple[int, bool, float, float | None, mx.array | None] | None:
    """Dimensions, form, scale, and base or frequencies."""
    if type(rope) is layers.NativeRoPE:
        return rope.dims, rope.traditional, rope.scale, rope.base, None
    return (rope.dims, rope.traditional, 1.0, None, rope._freqs) if type(rope) is Llama3RoPE else None
