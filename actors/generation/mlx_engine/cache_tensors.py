"""Kept parts of caches as bytes on the host, and back."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_serving.actors.generation.mlx_engine.cache_parts import (
    KvBlock,
    Snapshot,
    is_cache_class,
    state_arrays,
)
from mlx_serving.actors.generation.prefix.disk_record import Content, Tensor

_TYPES: dict[str, tuple[mx.Dtype, type[Any]]] = {
    "F32": (mx.float32, np.float32),
    "F16": (mx.float16, np.float16),
    "BF16": (mx.bfloat16, np.uint16),
    "U32": (mx.uint32, np.uint32),
    "I32": (mx.int32, np.int32),
    "I64": (mx.int64, np.int64),
    "U8": (mx.uint8, np.uint8),
    "BOOL": (mx.bool_, np.bool_),
}
"""The types of safetensors: MLX's, and the one of numpy with the same bytes."""
_NAMES = {dtype: name for name, (dtype, _) in _TYPES.items()}


def block_tensors(block: KvBlock) -> tuple[tuple[Tensor, ...], str]:
    """Its tensors, and a note by which `read_block` puts them together. Waits for the arrays."""
    note = json.dumps([len(layer) for layer in block.layers])
    return _tensors([array for layer in block.layers for array in layer]), note


def read_block(tensors: Sequence[Tensor], note: str) -> tuple[tuple[mx.array, ...], ...]:
    """The layers of a block. Raises ValueError, KeyError or TypeError for what `block_tensors` did not write."""
    arrays = _arrays(tensors)
    counts = [int(count) for count in json.loads(note)]
    if sum(counts) != len(tensors):
        raise ValueError("the note does not fit the tensors")
    return tuple(tuple(next(arrays) for _ in range(count)) for count in counts)


def read_packed(content: Content, copied: Callable[[memoryview], mx.array]) -> mx.array | None:
    """All arrays of a block one below the other, [arrays, heads, tokens, size], if they are of one form.

    `copied` makes an array [bytes] of some bytes. Raises ValueError or KeyError for what `block_tensors` did not write.
    """
    forms = {(form.dtype, form.shape) for form in content.forms}
    if len(forms) != 1:
        return None
    ((name, shape),) = forms
    dtype, _ = _TYPES[name]
    if shape[:1] != (1,) or content.data.nbytes != dtype.size * math.prod(shape) * len(content.forms):
        raise ValueError("the tensors do not follow each other")
    return copied(content.data).view(dtype).reshape(len(content.forms), *shape[1:])


def snapshot_tensors(snapshot: Snapshot) -> tuple[tuple[Tensor, ...], str]:
    """Its tensors, and a note by which `read_snapshot` puts them together. Waits for the arrays."""
    note = json.dumps([(name, _outline(state)) for name, state in snapshot.states])
    return _tensors(state_arrays(snapshot.states)), note


def read_snapshot(tensors: Sequence[Tensor], note: str) -> Snapshot:
    """Raises ValueError, KeyError, TypeError or StopIteration for what `snapshot_tensors` did not write."""
    arrays = _arrays(tensors)
    states = []
    for name, outline in json.loads(note):
        if not is_cache_class(name):
            raise ValueError(f"{name} is no cache")
        states.append((name, _filled(outline, arrays)))
    return Snapshot(tuple(states), sum(tensor.data.nbytes for tensor in tensors))


def has_memory_apart() -> bool:
    """Whether arrays live where the host cannot read them in place."""
    return bool(mx.default_device().type == mx.DeviceType.gpu and not mx.metal.is_available())


def _tensors(arrays: Sequence[mx.array]) -> tuple[Tensor, ...]:
    parts = _gathered(arrays) if has_memory_apart() else _in_place(arrays)
    return tuple(
        Tensor(_NAMES[array.dtype], tuple(array.shape), part) for array, part in zip(arrays, parts, strict=True)
    )


def _in_place(arrays: Sequence[mx.array]) -> list[memoryview]:
    """Their bytes where they are."""
    # numpy does not know bfloat16.
    raw = [array.view(mx.uint16) if array.dtype == mx.bfloat16 else array for array in arrays]
    mx.eval(raw)
    return [np.asarray(array).reshape(-1).view(np.uint8).data for array in raw]


def _gathered(arrays: Sequence[mx.array]) -> list[memoryview]:
    """Their bytes through one copy, and so one transfer; the arrays themselves stay on the device."""
    whole = mx.concatenate([array.reshape(-1).view(mx.uint8) for array in arrays] or [mx.zeros(0, mx.uint8)])
    mx.eval(whole)
    data, ends = np.asarray(whole).data, itertools.accumulate(array.nbytes for array in arrays)
    return [data[end - array.nbytes : end] for array, end in zip(arrays, ends, strict=True)]


def _arrays(tensors: Sequence[Tensor]) -> Iterator[mx.array]:
    for tensor in tensors:
        dtype, host = _TYPES[tensor.dtype]
        array = mx.array(np.frombuffer(tensor.data, host).reshape(tensor.shape))
        yield array.view(dtype) if array.dtype != dtype else array


def _outline(tree: Any) -> Any:
    """The tree as JSON, with a mark in the place of each array."""
    if isinstance(tree, mx.array):
        return {"array": True}
    if isinstance(tree, list | tuple):
        return {"tuple" if isinstance(tree, tuple) else "list": [_outline(each) for each in tree]}
    return tree


def _filled(outline: Any, arrays: Iterator[mx.array]) -> Any:
    if not isinstance(outline, dict):
        return outline
    if "array" in outline:
        return next(arrays)
    kind = tuple if "tuple" in outline else list
    return kind(_filled(each, arrays) for each in outline[kind.__name__])
