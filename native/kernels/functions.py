"""Functions that mlx-lm's models call, where a kernel of ours takes the arguments; otherwise mlx-lm's own.

Models take these functions into their own modules by name, so `install` replaces the names there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import mlx.core as mx
from mlx_lm.models import activations, base, gemma4_text
from mlx_lm.models.cache import QuantizedKVCache

from mlx_serving.native.kernels.operations import OPERATIONS
from mlx_serving.native.kernels.pure import FLOATING

_theirs_swiglu = activations.swiglu
_theirs_geglu = gemma4_text.geglu
_theirs_attention = base.scaled_dot_product_attention


def swiglu(gate: mx.array, x: mx.array) -> Any:
    """silu(gate) * x, without MLX's compiler, which calls g++ on the CPU."""
    if gate.dtype != x.dtype or gate.shape != x.shape or x.dtype not in FLOATING:
        return _theirs_swiglu(gate, x)
    return OPERATIONS.swiglu(gate, x)


def geglu(gate: mx.array, x: mx.array) -> Any:
    """gelu(gate) * x with the tanh approximation, as Gemma 4 has it, also without MLX's compiler."""
    if gate.dtype != x.dtype or gate.shape != x.shape or x.dtype not in FLOATING:
        return _theirs_geglu(gate, x)
    return OPERATIONS.geglu(gate, x)


def scaled_dot_product_attention(
    queries: mx.array,
    keys: Any,
    values: Any,
    cache: Any,
    scale: float,
    mask: Any,
    sinks: mx.array | None = None,
) -> Any:
    """mlx-lm's signature: keys and values, quantised ones too, with no mask or the causal one; all else is mlx-lm's."""
    is_plain = sinks is None and (mask is None or isinstance(mask, str))
    if is_plain and type(cache) is QuantizedKVCache and _fit_quantised(queries, keys, values, cache, mask):
        lengths = mx.full((queries.shape[0],), keys[0].shape[2], dtype=mx.int32)
        return OPERATIONS.quantized_slab_attention(queries, keys, values, lengths, scale, cache.group_size, cache.bits)
    if not is_plain or not isinstance(keys, mx.array) or not _fit(queries, keys, values):
        return _theirs_attention(queries, keys, values, cache=cache, scale=scale, mask=mask, sinks=sinks)
    return OPERATIONS.attention(queries, keys, values, scale, mask is not None)


def _fit(queries: mx.array, keys: mx.array, values: mx.array) -> bool:
    return (
        queries.dtype in FLOATING
        and keys.dtype == values.dtype == queries.dtype
        and keys.shape == values.shape
        and queries.shape[3] == keys.shape[3]
        and queries.shape[3] % 16 == 0
        and keys.shape[2] >= queries.shape[2]
    )


def _fit_quantised(queries: mx.array, keys: Any, values: Any, cache: QuantizedKVCache, mask: str | None) -> bool:
    """One query sees everything, with the causal mask or without."""
    return (
        queries.dtype in FLOATING
        and cache.bits in (4, 8)
        and (mask is not None or queries.shape[2] == 1)
        and queries.shape[3] == keys[1].shape[3] * cache.group_size
        and queries.shape[3] % 16 == 0
        and keys[0].shape[2] >= queries.shape[2]
        and all(key.shape == value.shape for key, value in zip(keys, values, strict=True))
    )


OURS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "swiglu": (_theirs_swiglu, swiglu),
    "geglu": (_theirs_geglu, geglu),
    "scaled_dot_product_attention": (_theirs_attention, scaled_dot_product_attention),
}
"""The name in a model's module: mlx-lm's function and ours."""


def install(model: Any) -> None:
    """Let the modules of mlx-lm that `model` is made of call ours."""
    _replace(model, dict(OURS.values()))


def uninstall(model: Any) -> None:
    """Give those modules mlx-lm's functions back."""
    _replace(model, {ours: theirs for theirs, ours in OURS.values()})


def _replace(model: Any, replacements: dict[Any, Any]) -> None:
    for module in _modules(model):
        for name in OURS:
            current = getattr(module, name, None)
            if current in replacements:
                setattr(module, name, replacements[current])


def _modules(model: Any) -> list[ModuleType]:
    names = {type(part).__module__ for part in model.modules()}
    return [sys.modules[name] for name in sorted(names) if name in sys.modules]
