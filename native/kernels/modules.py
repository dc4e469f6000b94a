"""The table from MLX's modules to ours, and `install`, which swaps them in a loaded model.

A module of ours is a subclass that computes the same from the same parameters, so a model keeps its structure:
whoever looks for a `QuantizedLinear` still finds one. What a kernel does not take goes to MLX's own operation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn

from mlx_serving.native.kernels import functions
from mlx_serving.native.kernels.operations import OPERATIONS, choice
from mlx_serving.native.kernels.pure import BITS, FLOATING, GROUP_SIZES

_nn: Any = mlx.nn
"""Its modules carry no types."""


class NativeQuantizedLinear(_nn.QuantizedLinear):  # type: ignore[misc]
    """A quantised linear layer."""

    def __call__(self, x: mx.array) -> Any:
        y = _quantized_product(self, x)
        return y + self.bias if "bias" in self else y


class NativeQuantizedEmbedding(_nn.QuantizedEmbedding):  # type: ignore[misc]
    """A quantised embedding, also as the output layer."""

    def as_linear(self, x: mx.array) -> Any:
        return _quantized_product(self, x)


class NativeLinear(_nn.Linear):  # type: ignore[misc]
    """A dense linear layer."""

    def __call__(self, x: mx.array) -> Any:
        if x.dtype not in FLOATING:
            return super().__call__(x)
        y = OPERATIONS.matmul(x, self.weight)
        return y + self.bias if "bias" in self else y


class NativeEmbedding(_nn.Embedding):  # type: ignore[misc]
    """A dense embedding as the output layer."""

    def as_linear(self, x: mx.array) -> Any:
        return OPERATIONS.matmul(x, self.weight) if x.dtype in FLOATING else super().as_linear(x)


class NativeRMSNorm(_nn.RMSNorm):  # type: ignore[misc]
    """A norm by root mean square."""

    def __call__(self, x: mx.array) -> Any:
        return OPERATIONS.rms_norm(x, self.weight, self.eps) if x.dtype in FLOATING else super().__call__(x)


class NativeLayerNorm(_nn.LayerNorm):  # type: ignore[misc]
    """A norm by mean and variance."""

    def __call__(self, x: mx.array) -> Any:
        if x.dtype not in FLOATING:
            return super().__call__(x)
        return OPERATIONS.layer_norm(x, self.get("weight"), self.get("bias"), self.eps)


class NativeRoPE(_nn.RoPE):  # type: ignore[misc]
    """A rotary position embedding; `offset` is one for all rows or a row's each."""

    def __call__(self, x: mx.array, offset: int | mx.array = 0) -> Any:
        first = _offset(offset)
        if x.ndim != 4 or x.dtype not in FLOATING or first is None:
            return super().__call__(x, offset=offset)
        return OPERATIONS.rope(x, self.dims, self.traditional, self.base, self.scale, first, None)


def _offset(offset: int | mx.array) -> mx.array | None:
    """As an array of the type the kernel takes; None for what it does not."""
    if isinstance(offset, int):
        return mx.array(offset, dtype=mx.int32)
    return offset if offset.dtype == mx.int32 and offset.ndim <= 1 else None


def _quantized_product(layer: Any, x: mx.array) -> mx.array:
    return OPERATIONS.quantized_matmul(  # type: ignore[no-any-return]
        x, layer.weight, layer.scales, layer.biases, layer.group_size, layer.bits
    )


def _takes_quantized(layer: Any) -> bool:
    """Layers of more axes than two belong to experts and are called otherwise."""
    return (
        getattr(layer, "mode", "affine") == "affine"
        and layer.bits in BITS
        and layer.group_size in GROUP_SIZES
        and layer.weight.ndim == 2
        and layer.scales.dtype in FLOATING
    )


def _takes_dense(layer: Any) -> bool:
    return bool(layer.weight.ndim == 2 and layer.weight.dtype in FLOATING)


def _always(layer: Any) -> bool:
    return True


TABLE: dict[type, tuple[type, Callable[[Any], bool]]] = {
    _nn.QuantizedLinear: (NativeQuantizedLinear, _takes_quantized),
    _nn.QuantizedEmbedding: (NativeQuantizedEmbedding, _takes_quantized),
    _nn.Linear: (NativeLinear, _takes_dense),
    _nn.Embedding: (NativeEmbedding, _takes_dense),
    _nn.RMSNorm: (NativeRMSNorm, _always),
    _nn.LayerNorm: (NativeLayerNorm, _always),
    _nn.RoPE: (NativeRoPE, _always),
}
"""MLX's module: ours, and whether ours takes this layer."""


def install(model: Any) -> int:
    """Let the modules of `model` compute with the native kernels; returns how many changed, 0 for the pure twin.

    For MLX's CPU back end. `uninstall` takes it back.
    """
    if choice.choice == "pure":
        return 0
    changed = 0
    for module in model.modules():
        ours, takes = TABLE.get(type(module), (type(module), _always))
        if ours is not type(module) and takes(module):
            module.__class__ = ours
            changed += 1
    functions.install(model)
    return changed


def uninstall(model: Any) -> None:
    """Give MLX's own modules back."""
    origins = {ours: theirs for theirs, (ours, _) in TABLE.items()}
    for module in model.modules():
        module.__class__ = origins.get(type(module), type(module))
    functions.uninstall(model)
