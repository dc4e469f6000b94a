"""One forward pass over one group of rows: where its new tokens go, and how the rows attend to their slab."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import attrs
import mlx.core as mx

from mlx_serving.actors.generation.mlx_engine import attention_kernels, composed_attention
from mlx_serving.actors.generation.mlx_engine.device import is_cpu
from mlx_serving.actors.generation.mlx_engine.kv_format import KvFormat, Slab
from mlx_serving.actors.generation.mlx_engine.kv_slabs import SlabGroup
from mlx_serving.native import kernels
from mlx_serving.native.kernels.stacks import DecoderStack, can_stack

_MOST_TOKENS = 64
"""Of a pass whose scores a kernel keeps in registers and stacks; longer ones are prefill's."""


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
            return composed_attention.attention(queries, all_keys, all_values, scale, self._mask, sinks)
        return composed_attention.quantised_attention(
            queries, all_keys, all_values, scale, self._mask, form.group_size, form.bits
        )


@attrs.frozen
class InPlace:
    """A kernel that attends and writes in place. It takes queries, new keys and values, the slabs, `lengths` before the
    new tokens [rows] int32 and a factor, for up to `most_tokens` tokens a row."""

    attend: Callable[..., mx.array]
    most_tokens: int
    takes_slotless_rows: bool = False
    """Whether there may be more rows than slots, of which nothing is kept."""
    stack: DecoderStack | None = None
    """All layers of the model in one operation, while it `holds`."""


def in_place_kernel(model: Any, head_sizes: set[int], setting: str, form: KvFormat) -> InPlace | None:
    """The one that runs on this device, takes heads of these sizes in this form, and that
    `generation.in_place_attention` wants."""
    if len(head_sizes) != 1 or setting == "off":
        return None
    if attention_kernels.suits(head_sizes, setting):
        attend: Callable[..., mx.array] = attention_kernels.attend_in_place
        if form.bits is not None:
            attend = functools.partial(attention_kernels.attend_quantised, group_size=form.group_size, bits=form.bits)
        return InPlace(attend, attention_kernels.MOST_TOKENS, takes_slotless_rows=True)
    if is_cpu() and kernels.choice.choice == "native" and not any(size % 16 for size in head_sizes):
        attend = kernels.operations.attend_in_place
        if form.bits is not None:
            quantised = kernels.operations.attend_quantized_in_place
            attend = functools.partial(quantised, group_size=form.group_size, bits=form.bits)
        stack = DecoderStack(model) if can_stack(model) else None
        return InPlace(attend, _MOST_TOKENS, stack=stack)
    return None


class InPlacePass:
    """By a kernel that writes in place, without sinks."""

    def __init__(self, attend: Callable[..., mx.array], lengths: mx.array, slabs: Sequence[tuple[Slab, Slab]]) -> None:
        """`lengths` [rows] int32; `slabs` are the keys and values of each layer."""
        self.rows = lengths.shape[0]
        self._attend = attend
        self._lengths = lengths
        self._slabs = slabs

    def attend(
        self, layer: int, queries: mx.array, keys: mx.array, values: mx.array, scale: float, sinks: mx.array | None
    ) -> mx.array:
        if sinks is not None:
            raise NotImplementedError("the kernel knows no attention sinks")
        slab_keys, slab_values = self._slabs[layer]
        return self._attend(queries, keys, values, slab_keys, slab_values, self._lengths, scale)
