"""One forward pass over one group of rows: where its new tokens go, and how the rows attend to their slab."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import mlx.core as mx
from mlx_lm.models.base import quantized_scaled_dot_product_attention

from mlx_serving.actors.generation.mlx_engine import attention_kernels
from mlx_serving.actors.generation.mlx_engine.kv_format import Slab
from mlx_serving.actors.generation.mlx_engine.kv_slabs import SlabGroup


class GroupPass(Protocol):
    """The pass of the rows of one group; `rows` is their number."""

    rows: int

    def attend(
        self, layer: int, queries: mx.array, keys: mx.array, values: mx.array, scale: float, sinks: mx.array | None
    ) -> mx.array:
        """Keep this group's new keys and values, and attend to everything up to them."""
        ...


class CopyingPass:
    """By MLX's own operations, for any number of tokens a row and every format of keys and values.

    While a step in flight still reads the slab, MLX copies it to write to it.
    """

    def __init__(self, group: SlabGroup, tokens: int) -> None:
        lengths = group.lengths
        self.rows = len(lengths)
        self._group = group
        self._span = max(lengths) + tokens
        self._column: int | mx.array = lengths[0]
        self._mask: Any = None if tokens == 1 else "causal"
        if len(set(lengths)) > 1:
            ends = mx.array(lengths, dtype=mx.int32)[:, None] + mx.arange(tokens, dtype=mx.int32)
            self._column = ends.reshape(-1)
            self._mask = (mx.arange(self._span, dtype=mx.int32) <= ends[..., None])[:, None]

    def attend(
        self, layer: int, queries: mx.array, keys: mx.array, values: mx.array, scale: float, sinks: mx.array | None
    ) -> mx.array:
        form, slab = self._group.form, self._group.layers[layer]
        slab.append(form.encoded(keys), form.encoded(values), self._column)
        all_keys, all_values = slab.read(self.rows, self._span)
        if form.bits is None:
            return mx.fast.scaled_dot_product_attention(
                queries, all_keys, all_values, scale=scale, mask=self._mask, sinks=sinks
            )
        return quantized_scaled_dot_product_attention(
            queries, all_keys, all_values, scale, self._mask, form.group_size, form.bits
        )


class InPlacePass:
    """By the kernel that writes in place: one token a row, plain keys and values, no sinks."""

    def __init__(self, lengths: mx.array, slabs: Sequence[tuple[Slab, Slab]]) -> None:
        """`lengths` [rows] int32; `slabs` are the keys and values of each layer."""
        self.rows = lengths.shape[0]
        self._lengths = lengths
        self._slabs = slabs

    def attend(
        self, layer: int, queries: mx.array, keys: mx.array, values: mx.array, scale: float, sinks: mx.array | None
    ) -> mx.array:
        if sinks is not None:
            raise NotImplementedError("the kernel knows no attention sinks")
        slab_keys, slab_values = self._slabs[layer]
        factor = mx.array([scale], dtype=mx.float32)
        return attention_kernels.attend_in_place(queries, keys, values, slab_keys, slab_values, self._lengths, factor)
