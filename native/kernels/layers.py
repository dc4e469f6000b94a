"""Modules of ours: subclasses of MLX's that compute the same from the same parameters with a kernel.

A model so keeps its structure: whoever looks for a `QuantizedLinear` still finds one. What a kernel does not take goes
to MLX's own operation.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn

from mlx_serving.native.kernels.operations import OPERATIONS
from mlx_serving.native.kernels.pure import BITS, FLOATING, GROUP_SIZES, PANEL_ROWS, digits_of

_nn: Any = mlx.nn
"""Its modules carry no types."""


class NativeQuantizedLinear(_nn.QuantizedLinear):  # type: ignore[misc]
    """A quantised linear layer."""

    def __call__(self, x: mx.array) -> Any:
        y = _quantized_product(self, x)
        return y + self.bias if "bias" in self else y


class NativeQuantizedEmbedding(_nn.QuantizedEmbedding):  # type: ignore[misc]
    """A quantised embedding, also as the output layer."""

    def __call__(self, x: mx.array) -> Any:
        if self.weight.ndim == 2:
            return super().__call__(x)
        panel, row = x // PANEL_ROWS, x % PANEL_ROWS
        weight, scales, biases = (part[panel, :, row] for part in (self.weight, self.scales, self.biases))
        bits = self.bits
        if bits in (5, 6):  # panels have them in an order of their own
            weight, bits = digits_of(weight, bits).view(mx.uint32), 8
        return mx.dequantize(weight, scales=scales, biases=biases, group_size=self.group_size, bits=bits)

    def as_linear(self, x: mx.array) -> Any:
        scales, biases = self._narrowed()
        return OPERATIONS.quantized_matmul(x, self.weight, scales, biases, self.group_size, self.bits)

    def _narrowed(self) -> tuple[mx.array, mx.array]:
        """Scales and biases in half precision where that loses nothing: less of them is read for each token."""
        kept = vars(self).get("_narrow")
        if kept is None or kept[0] is not self.scales:
            kept = (self.scales, _narrowest(self.scales, self.biases))
            # Not an entry of the module, which would be taken for a parameter.
            object.__setattr__(self, "_narrow", kept)
        pair: tuple[mx.array, mx.array] = kept[1]
        return pair


def forget(layer: Any) -> None:
    """Drop what a layer of ours keeps beside its parameters."""
    vars(layer).pop("_narrow", None)


def _narrowest(scales: mx.array, biases: mx.array) -> tuple[mx.array, mx.array]:
    if scales.dtype != mx.float32:
        return scales, biases
    halves = (scales.astype(mx.float16), biases.astype(mx.float16))
    is_exact = [mx.all(half.astype(mx.float32) == whole) for half, whole in zip(halves, (scales, biases), strict=True)]
    return halves if all(bool(each.item()) for each in is_exact) else (scales, biases)


class NativeLinear(_nn.Linear):  # type: ignore[misc]
    """A dense linear layer."""

    def __call__(self, x: mx.array) -> Any:
        if x.dtype not in FLOATING:
            return super().__call__(x)
        y = OPERATIONS.matmul(x, self.weight)
        return y + self.bias if "bias" in self else y


class NativeEmbedding(_nn.Embedding):  # type: ignore[misc]
    """A dense embedding, which gives float32, also as the output layer."""

    def __call__(self, x: mx.array) -> Any:
        return super().__call__(x).astype(mx.float32)

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
        first = offset_array(offset)
        if x.ndim != 4 or x.dtype not in FLOATING or first is None:
            return super().__call__(x, offset=offset)
        return OPERATIONS.rope(x, self.dims, self.traditional, self.base, self.scale, first, None)


HALF_PRECISION: dict[type, tuple[str, ...]] = {
    NativeLinear: ("weight",),
    NativeEmbedding: ("weight",),
    NativeQuantizedLinear: ("scales", "biases"),
}
"""What layers of ours read in half precision to compute in float32."""


def offset_array(offset: int | mx.array) -> mx.array | None:
    """As an array of the type the kernel takes; None for what it does not."""
    if isinstance(offset, int):
        return mx.array(offset, dtype=mx.int32)
    return offset if offset.dtype == mx.int32 and offset.ndim <= 1 else None


def _quantized_product(layer: Any, x: mx.array) -> mx.array:
    return OPERATIONS.quantized_matmul(  # type: ignore[no-any-return]
        x, layer.weight, layer.scales, layer.biases, layer.group_size, layer.bits
    )


def outputs_of(layer: Any) -> int:
    """Rows of a linear layer's matrix, in whatever layout it is."""
    if not isinstance(layer, _nn.QuantizedLinear):
        return int(layer.weight.shape[0])
    return int(layer.weight.size * 32 // layer.bits // inputs_of(layer))


def inputs_of(layer: Any) -> int:
    """Columns of a linear layer's matrix."""
    if not isinstance(layer, _nn.QuantizedLinear):
        return int(layer.weight.shape[1])
    return int(layer.scales.shape[1] * layer.group_size)


def takes_quantized(layer: Any) -> bool:
    """Layers of more axes than two belong to experts and are called otherwise."""
    return (
        getattr(layer, "mode", "affine") == "affine"
        and layer.bits in BITS
        and layer.group_size in GROUP_SIZES
        and layer.weight.ndim == 2
        and layer.scales.dtype in FLOATING
    )


def takes_dense(layer: Any) -> bool:
    return bool(layer.weight.ndim == 2 and layer.weight.dtype in FLOATING)
