"""All decoder layers of a model of the Llama family as one operation over slabs of keys and values.

MLX hands operations over one at a time, and the thread that builds the graph wakes up for each of them: for a small
model on two cores that takes a fifth of the step. `DecoderStack` leaves a handful of operations of a forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from mlx_serving.native.kernels import blocks
from mlx_serving.native.kernels.layers import outputs_of
from mlx_serving.native.kernels.operations import OPERATIONS

Slab = mx.array | Sequence[mx.array]
"""Keys or values [slots, kv heads, capacity, head size] float32, or quantised ones: digits, scales and biases."""
SlabGroup = tuple[mx.array, Sequence[tuple[Slab, Slab]]]
"""Of rows whose slabs belong together: lengths [rows] int32 before the new tokens; each layer's keys and values, row i
in slot i."""


class DecoderStack:
    """A model's forward pass, with its layers in one operation that writes new keys and values into the slabs."""

    def __init__(self, model: Any) -> None:
        """`model` passed `can_stack`."""
        self._model = model
        layers, attention = model.model.layers, model.model.layers[0].self_attn
        self._blocks, makings = zip(*(layer._fused for layer in layers), strict=True)
        self._scale = attention.scale
        self._stack = OPERATIONS.Stack(self._blocks, self._scale)
        self.kv_shape = (attention.n_kv_heads, outputs_of(attention.q_proj) // attention.n_heads)
        """Heads and their size of each layer's keys and values."""
        self._makings = tuple(zip(layers, makings, strict=True))

    def holds(self) -> bool:
        """Whether the layers are still made of what they were: adapters, for instance, change them."""
        return all(makings.are_of(layer) for layer, makings in self._makings)

    @property
    def layers(self) -> int:
        """How many there are."""
        return len(self._blocks)

    def enter(self, tokens: mx.array) -> mx.array:
        """What the first layer is given of tokens [rows, tokens]: [rows, tokens, columns]."""
        hidden: mx.array = self._model.model.embed_tokens(tokens)
        return hidden

    def go_on(self, hidden: mx.array, first: int, group: SlabGroup) -> mx.array:
        """Take what layer `first` is given through as many layers as the group has keys and values of; what the one
        behind them is given."""
        through = self._blocks[first : first + len(group[1])]
        given: mx.array = OPERATIONS.Stack(through, self._scale).run(hidden, [group])
        return given

    def __call__(self, tokens: mx.array, groups: Sequence[SlabGroup]) -> mx.array:
        """Logits [rows, tokens, vocabulary] of tokens [rows, tokens], the rows of all groups in order."""
        model = self._model
        hidden = model.model.norm(self._stack.run(self.enter(tokens), groups))
        logits: mx.array
        logits = model.model.embed_tokens.as_linear(hidden) if "lm_head" not in model else model.lm_head(hidden)
        return logits


def can_stack(model: Any) -> bool:
    """Whether the layers of this model are all fused ones (`blocks.fuse`) of one scale, and computed in float32."""
    if type(model).__module__ not in blocks.FAMILIES or type(model).__name__ != "Model":
        return False
    layers = model.model.layers
    if not all("_fused" in vars(layer) for layer in layers) or len({layer.self_attn.scale for layer in layers}) > 1:
        return False
    return bool(model.model.embed_tokens(mx.zeros((1, 1), dtype=mx.uint32)).dtype == mx.float32)
