"""The pure twin of `_kernels`, in MLX's own operations: same names, same arguments, same results up to rounding."""

from __future__ import annotations

import mlx.core as mx

FLOATING = (mx.float32, mx.float16, mx.bfloat16)
BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)


def quantized_matmul(
    x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array, group_size: int, bits: int
) -> mx.array:
    """x `[..., k]` times the transpose of an affinely quantised matrix `[n, k]`: `[..., n]` in x's type.

    `scales` and `biases` are `[n, k / group_size]` of one floating type. Raises ValueError for other arrays.
    """
    _require(bits in BITS, "bits must be 2, 3, 4, 5, 6 or 8")
    _require(group_size in GROUP_SIZES, "group_size must be 32, 64 or 128")
    _floating(x=x, scales=scales)
    _require(weight.dtype == mx.uint32, "weight must be uint32")
    _require(scales.dtype == biases.dtype, "scales and biases must have one type")
    _require(x.ndim >= 1 and weight.ndim == 2 and scales.ndim == 2, "x must have at least one axis, the weight two")
    columns = x.shape[-1]
    _require(
        columns > 0 and columns % group_size == 0 and columns * bits == weight.shape[1] * 32,
        f"x {x.shape} and weight {weight.shape} do not belong together",
    )
    _require(
        scales.shape == biases.shape == (weight.shape[0], columns // group_size),
        f"scales {scales.shape} and biases {biases.shape} do not fit weight {weight.shape}",
    )
    wide, wide_scales, wide_biases = (each.astype(mx.float32) for each in (x, scales, biases))
    product = mx.quantized_matmul(wide, weight, wide_scales, wide_biases, group_size=group_size, bits=bits)
    return product.astype(x.dtype)


def matmul(x: mx.array, weight: mx.array) -> mx.array:
    """x `[..., k]` times the transpose of a dense matrix `[n, k]` of any floating type: `[..., n]` in x's type.

    Sums are in float32. Raises ValueError for other arrays.
    """
    _floating(x=x, weight=weight)
    _require(x.ndim >= 1 and weight.ndim == 2, "x must have at least one axis, the weight two")
    _require(
        x.shape[-1] > 0 and x.shape[-1] == weight.shape[1],
        f"x {x.shape} and weight {weight.shape} do not belong together",
    )
    return (x.astype(mx.float32) @ weight.astype(mx.float32).T).astype(x.dtype)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _floating(**arrays: mx.array) -> None:
    for name, array in arrays.items():
        _require(array.dtype in FLOATING, f"{name} must be float32, float16 or bfloat16")
