"""Quantised layers on the CPU back end: dequantise once for many rows and let the BLAS multiply.

MLX's quantised product on the CPU is a loop on one thread whose time grows with the rows; with OpenBLAS ahead of the
reference BLAS, dequantising the whole weight and one dense product are faster from a few rows on (measured in
docs/benchmarks.md). The result differs from the quantised product by the order of the sums in float32 alone.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn

_nn: Any = mlx.nn
"""Its modules carry no types."""


def _dequantised(layer: Any) -> mx.array:
    return mx.dequantize(
        layer.weight,
        layer.scales,
        layer.biases,
        group_size=layer.group_size,
        bits=layer.bits,
        mode=layer.mode,
    )


def use_dense_products(model: Any, from_rows: int) -> int:
    """Let the quantised layers of `model` take the dense way from `from_rows` rows on; 0 leaves them alone.

    Returns how many layers changed. They go that way while their scales are float32: the BLAS has no half precision.
    """
    if not from_rows:
        return 0

    def pays(layer: Any, x: mx.array) -> bool:
        return x.size // x.shape[-1] >= from_rows and bool(layer.scales.dtype == mx.float32)

    class DenseLinear(_nn.QuantizedLinear):  # type: ignore[misc]
        """A quantised linear layer that multiplies densely when it pays."""

        def __call__(self, x: mx.array) -> Any:
            if not pays(self, x):
                return super().__call__(x)
            y = x @ _dequantised(self).T
            return y + self.bias if "bias" in self else y

    class DenseEmbedding(_nn.QuantizedEmbedding):  # type: ignore[misc]
        """A quantised embedding whose use as output layer multiplies densely when it pays."""

        def as_linear(self, x: mx.array) -> Any:
            return x @ _dequantised(self).T if pays(self, x) else super().as_linear(x)

    ways: dict[type, type] = {_nn.QuantizedLinear: DenseLinear, _nn.QuantizedEmbedding: DenseEmbedding}
    layers = [each for each in model.modules() if type(each) in ways]
    for layer in layers:
        layer.__class__ = ways[type(layer)]
    return len(layers)
