"""Linear layers that choose how they multiply, by the number of rows they are given.

MLX's quantised product on the CPU is a loop on one thread whose time grows with the rows; with OpenBLAS ahead of the
reference BLAS, dequantising the whole weight and one dense product are faster from a few rows on (measured in
docs/benchmarks.md). On CUDA kernels of ours take a few rows, and a dense product takes many. Results differ from MLX's
by the order of the sums, and of many rows with quantised weights in half precision by these being rounded to it first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn

from mlx_serving.actors.generation.mlx_engine import product_kernels
from mlx_serving.actors.generation.mlx_engine.product_kernels import rows_of

_nn: Any = mlx.nn
"""Its modules carry no types."""

Product = Callable[[Any, mx.array, mx.array | None], mx.array | None]
"""Of x with a layer's weight, and a bias; None where MLX's own is better."""


def dense_from(rows: int) -> Product:
    """Dense products of so many rows and more, of quantised layers whose scales are float32: the BLAS has no half
    precision."""

    def product(layer: Any, x: mx.array, bias: mx.array | None) -> mx.array | None:
        pays = is_quantised(layer) and rows_of(x) >= rows and layer.scales.dtype == mx.float32
        return _dequantised_product(layer, x, bias) if pays else None

    return product


def on_tensor_cores(layer: Any, x: mx.array, bias: mx.array | None) -> mx.array | None:
    """A few rows by a kernel, many by a dense product. One row too where there is a bias: MLX has no kernel for it that
    adds one, and cuBLAS's costs the host four times as much."""
    if rows_of(x) < (2 if bias is None else 1) or not takes(layer) or (bias is not None and bias.dtype != x.dtype):
        return None
    if is_quantised(layer):
        if x.dtype != layer.scales.dtype:
            return None
        if rows_of(x) > product_kernels.MOST_QUANTIZED_ROWS:
            return _dequantised_product(layer, x, bias)
        return product_kernels.quantized(x, layer.weight, layer.scales, layer.biases, layer.group_size, bias)
    suits = x.dtype == layer.weight.dtype and rows_of(x) <= product_kernels.most_dense_rows(layer.weight)
    return product_kernels.dense(x, layer.weight, bias) if suits else None


def takes(layer: Any) -> bool:
    """Whether a kernel multiplies with this layer's weight."""
    if not is_quantised(layer):
        return product_kernels.takes_dense(layer.weight)
    return getattr(layer, "mode", "") == "affine" and product_kernels.takes_quantized(
        layer.weight, layer.scales, layer.get("biases"), layer.group_size, layer.bits
    )


def is_quantised(layer: Any) -> bool:
    return hasattr(layer, "bits")


def dequantised(layer: Any) -> mx.array:
    """A quantised layer's whole weight."""
    return mx.dequantize(
        layer.weight,
        layer.scales,
        layer.get("biases"),
        group_size=layer.group_size,
        bits=layer.bits,
        mode=layer.mode,
    )


def lay_out(model: Any) -> None:
    """Put the elements of weights in the order that the kernels read, where they are transposed: once, not at each
    product."""
    for layer in model.modules():
        if isinstance(layer, _nn.Linear):
            layer.weight = mx.contiguous(layer.weight)


def choose_products(model: Any, product: Product) -> int:
    """Let the linear layers of `model`, and embeddings as output layers, multiply by `product` where it does.

    Returns how many layers changed.
    """

    def choosing(kind: type) -> type:
        class Choosing(kind):  # type: ignore[misc]
            def __call__(self, x: mx.array) -> Any:
                y = product(self, x, self.get("bias"))
                return super().__call__(x) if y is None else y

        return _named(Choosing, kind)

    def choosing_as_output(kind: type) -> type:
        class Choosing(kind):  # type: ignore[misc]
            def as_linear(self, x: mx.array) -> Any:
                y = product(self, x, None)
                return super().as_linear(x) if y is None else y

        return _named(Choosing, kind)

    ways = {kind: choosing(kind) for kind in (_nn.Linear, _nn.QuantizedLinear)}
    ways |= {kind: choosing_as_output(kind) for kind in (_nn.Embedding, _nn.QuantizedEmbedding)}
    layers = [each for each in model.modules() if type(each) in ways]
    for layer in layers:
        layer.__class__ = ways[type(layer)]
    return len(layers)


def _named(choosing: type, kind: type) -> type:
    choosing.__name__ = f"Choosing{kind.__name__}"
    return choosing


def _dequantised_product(layer: Any, x: mx.array, bias: mx.array | None) -> mx.array:
    y = x @ dequantised(layer).T
    return y if bias is None else y + bias
