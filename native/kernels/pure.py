"""The pure twin of `_kernels`, in MLX's own operations: same names, same arguments, same results up to rounding.

That of `draw` and `adjust` is what the engine does without them, in its `sampling` and `penalties`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import mlx.core as mx

FLOATING = (mx.float32, mx.float16, mx.bfloat16)
BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
PANEL_ROWS = 32
PANEL_BITS = (4, 5, 6, 8)
_OWN_ORDER, _LOWER = (5, 6), 4
"""Widths of which panels keep so many bits of a digit as they keep digits of 4; the others stand apart."""
_ROWS = 256


def quantized_matmul(
    x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array, group_size: int, bits: int
) -> mx.array:
    """x `[..., k]` times the transpose of an affinely quantised matrix `[n, k]`: `[..., n]` in x's type.

    `scales` and `biases` are `[n, k / group_size]` of one floating type; all three may be in panels. Raises ValueError
    for other arrays.
    """
    if weight.ndim == 3:
        parts = (weight, scales, biases)
        _require(all(part.ndim == 3 and part.shape[2] == PANEL_ROWS for part in parts), "panels must be of 32 rows")
        _require(bits in PANEL_BITS, "panels must have 4, 5, 6 or 8 bits")
        weight, scales, biases = digits_from_panels(weight, bits), from_panels(scales), from_panels(biases)
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


def takes_panels() -> bool:
    """Whether products with panels are faster than with matrices."""
    return False


def to_panels(matrix: mx.array) -> mx.array:
    """A matrix `[n, k]` as panels `[n / 32, k, 32]`: rows next to each other, element by element.

    Raises ValueError unless n is a multiple of 32.
    """
    _require(
        matrix.ndim == 2 and matrix.size > 0 and matrix.shape[0] % PANEL_ROWS == 0,
        f"a matrix {matrix.shape} in panels must have a multiple of 32 rows",
    )
    return mx.contiguous(matrix.reshape(-1, PANEL_ROWS, matrix.shape[1]).swapaxes(1, 2))


def from_panels(panels: mx.array) -> mx.array:
    """The matrix that `to_panels` was given."""
    return mx.contiguous(panels.swapaxes(1, 2).reshape(-1, panels.shape[1]))


def digits_to_panels(weight: mx.array, bits: int) -> mx.array:
    """The same for a quantised matrix's words `[n, k * bits / 32]`.

    Those of 32 columns with 5 or 6 bits become words of their digits' lower four bits, and one behind each four or two
    of these with the other bits (native/src/cpu/panels.hpp). Raises ValueError for what panels do not take.
    """
    _require(bits in PANEL_BITS, "panels must have 4, 5, 6 or 8 bits")
    _require(
        weight.dtype == mx.uint32 and weight.ndim == 2 and weight.shape[1] % bits == 0,
        f"digits {weight.shape} of {bits} bits must be uint32 words of 32 columns each",
    )
    if bits in _OWN_ORDER:
        weight = _by_rows(lambda words: _panel_words(_regrouped(words, 32, bits), bits), weight)
    return to_panels(weight)


def digits_from_panels(panels: mx.array, bits: int) -> mx.array:
    """The words that `digits_to_panels` was given."""
    words = from_panels(panels)
    return _by_rows(lambda rows: _regrouped(digits_of(rows, bits), bits, 32), words) if bits in _OWN_ORDER else words


def digits_of(words: mx.array, bits: int) -> mx.array:
    """The digits, as bytes `[..., k]`, of words `[..., k * bits / 32]` of 5 or 6 bits in the order of panels."""
    lower, upper = _places(bits)
    steps = words.reshape(*words.shape[:-1], -1, len(upper) + 1)
    low = (steps[..., :-1, None] >> lower) & 15
    high = (steps[..., -1:, None] >> upper) & ((1 << bits - _LOWER) - 1)
    return (low | (high << _LOWER)).astype(mx.uint8).reshape(*words.shape[:-1], -1)


def _panel_words(digits: mx.array, bits: int) -> mx.array:
    """What `digits_of` takes: of digits `[rows, k]`."""
    lower, upper = _places(bits)
    eights = digits.reshape(len(digits), -1, len(upper), 8)
    low = ((eights & 15) << lower).sum(axis=-1)
    high = ((eights >> _LOWER) << upper).sum(axis=(-2, -1))
    return mx.concatenate([low, high[..., None]], axis=-1).reshape(len(digits), -1)


def _places(bits: int) -> tuple[mx.array, mx.array]:
    """Where the lower four bits of each digit of 5 or 6 begin in their word, `[8]`, and the others in the word behind
    each so many of these, `[words, 8]`."""
    width = bits - _LOWER
    words = range(_LOWER // width)
    upper = [[place // 2 * 8 + (2 * word + place % 2) * width for place in range(8)] for word in words]
    return mx.arange(0, 32, _LOWER, dtype=mx.uint32), mx.array(upper, dtype=mx.uint32)


def _regrouped(numbers: mx.array, of: int, into: int) -> mx.array:
    """Numbers `[rows, k]` of so many bits each as numbers of `into` bits, from the lowest bit of the first on."""
    single = ((numbers[..., None] >> mx.arange(of, dtype=mx.uint32)) & 1).reshape(len(numbers), -1, into)
    return (single << mx.arange(into, dtype=mx.uint32)).sum(axis=-1)


def _by_rows(change: Callable[[mx.array], mx.array], matrix: mx.array) -> mx.array:
    """Some rows at a time: where a bit takes a whole number, all at once would take 32 times the matrix."""
    return mx.concatenate([change(matrix[row : row + _ROWS]) for row in range(0, len(matrix), _ROWS)])


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


def rms_norm(x: mx.array, weight: mx.array | None, eps: float) -> mx.array:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, in the type that x and weight have in common."""
    _norm(x, weight)
    return mx.fast.rms_norm(x, weight, eps)


def layer_norm(x: mx.array, weight: mx.array | None, bias: mx.array | None, eps: float) -> mx.array:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis; weight and bias are of one type."""
    _norm(x, weight, bias)
    return mx.fast.layer_norm(x, weight, bias, eps)


def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """silu(gate) * x, both of one shape and type."""
    _alike(gate, x)
    wide = gate.astype(mx.float32)
    return (wide * mx.sigmoid(wide) * x.astype(mx.float32)).astype(x.dtype)


def geglu(gate: mx.array, x: mx.array) -> mx.array:
    """gelu(gate) * x with the tanh approximation, both of one shape and type."""
    _alike(gate, x)
    wide = gate.astype(mx.float32)
    # (1 + tanh(a)) / 2 is the sigmoid of 2 a, which does not cancel for negative gates.
    half = mx.sigmoid(2 * math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3))
    return (wide * half * x.astype(mx.float32)).astype(x.dtype)


def rope(
    x: mx.array,
    dims: int,
    traditional: bool,
    base: float | None,
    scale: float,
    offset: mx.array,
    freqs: mx.array | None,
) -> mx.array:
    """x `[rows, heads, tokens, size]`, of each head the first `dims` elements rotated by its position.

    Positions begin at `offset`, int32, one or a row's each. Either `base` or `freqs` `[dims / 2]` is given.
    """
    _floating(x=x)
    _require(x.ndim == 4, "x must be [rows, heads, tokens, size]")
    _require(dims > 0 and dims % 2 == 0 and dims <= x.shape[3], "dims must be even and at most the size of a head")
    _require((base is None) != (freqs is None), "either base or freqs must be given")
    _require(base is None or base > 0, "base must be positive")
    _require(
        offset.dtype == mx.int32 and (offset.size == 1 or offset.shape == (x.shape[0],)),
        "offset must be int32, one or a row's each",
    )
    _require(
        freqs is None or (freqs.dtype == mx.float32 and freqs.shape == (dims // 2,)),
        "freqs must be float32 [dims / 2]",
    )
    first = offset.reshape(-1)
    return mx.fast.rope(x, dims, traditional=traditional, base=base, scale=scale, offset=first, freqs=freqs)


def attention(queries: mx.array, keys: mx.array, values: mx.array, scale: float, causal: bool) -> mx.array:
    """Attention of queries `[rows, heads, tokens, size]` to keys and values `[rows, kv heads, columns, size]`.

    With `causal` the last query sees all columns and each one before it one less. The size is a multiple of 16.
    """
    _slabs(queries, keys, values)
    _require(keys.shape[0] == queries.shape[0], "keys have other rows than queries")
    return _attended(queries, keys, values, scale, "causal" if causal else None)


def slab_attention(queries: mx.array, keys: mx.array, values: mx.array, lengths: mx.array, scale: float) -> mx.array:
    """The same, causal, over slabs `[slots, kv heads, capacity, size]` with row i in slot i.

    Row i holds `lengths[i]` columns, those of its queries included; lengths beyond the capacity count as that.
    """
    _slabs(queries, keys, values)
    _lengths(lengths, queries, keys)
    rows, _, tokens, _ = queries.shape
    capacity = keys.shape[2]
    ends = mx.clip(lengths, tokens, capacity)[:, None] - tokens + mx.arange(tokens, dtype=mx.int32)
    mask = (mx.arange(capacity, dtype=mx.int32) <= ends[..., None])[:, None]
    # What stands behind a row's end may be anything: infinities would survive a weight of zero.
    is_used = mask[:, :, -1, :, None]
    used_keys, used_values = (mx.where(is_used, side[:rows], mx.array(0, side.dtype)) for side in (keys, values))
    return _attended(queries, used_keys, used_values, scale, mask)


def quantized_slab_attention(
    queries: mx.array,
    keys: Sequence[mx.array],
    values: Sequence[mx.array],
    lengths: mx.array,
    scale: float,
    group_size: int,
    bits: int,
) -> mx.array:
    """The same over slabs that are quantised along the head size: values, scales and biases each."""
    _quantized(queries, keys, values, group_size, bits)
    wide_keys, wide_values = (
        mx.dequantize(side[0], side[1].astype(mx.float32), side[2].astype(mx.float32), group_size=group_size, bits=bits)
        for side in (keys, values)
    )
    return slab_attention(queries, wide_keys, wide_values, lengths, scale)


def attend_in_place(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    slab_keys: mx.array,
    slab_values: mx.array,
    lengths: mx.array,
    scale: float,
) -> mx.array:
    """Writes keys and values `[rows, kv heads, tokens, size]` to the slabs from column `lengths[row]` on, and attends.

    The native twin writes to the memory of the slabs, which nobody else may read there before this is evaluated; this
    one changes the two arrays as an assignment would, and so does the native one where a slab's last axis has gaps or
    its elements share places.
    """
    _slabs(queries, slab_keys, slab_values)
    _lengths(lengths, queries, slab_keys)
    _new(queries, keys, values, slab_keys, slab_keys.dtype)
    after = _write([(slab_keys, keys), (slab_values, values)], lengths)
    return slab_attention(queries, slab_keys, slab_values, after, scale)


def attend_quantized_in_place(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    slab_keys: Sequence[mx.array],
    slab_values: Sequence[mx.array],
    lengths: mx.array,
    scale: float,
    group_size: int,
    bits: int,
) -> mx.array:
    """The same over slabs that are quantised along the head size: values, scales and biases each.

    What is new, of the type of the scales, is quantised as `mx.quantize` does before anything attends to it.
    """
    _quantized(queries, slab_keys, slab_values, group_size, bits)
    _lengths(lengths, queries, slab_keys[0])
    _new(queries, keys, values, slab_keys[0], slab_keys[1].dtype)
    pairs: list[tuple[mx.array, mx.array]] = []
    for slab, new in ((slab_keys, keys), (slab_values, values)):
        pairs += zip(slab, mx.quantize(new, group_size=group_size, bits=bits), strict=True)
    after = _write(pairs, lengths)
    return quantized_slab_attention(queries, slab_keys, slab_values, after, scale, group_size, bits)


def _write(pairs: Sequence[tuple[mx.array, mx.array]], lengths: mx.array) -> mx.array:
    """Put new columns [rows, kv heads, tokens, ...] into slabs, behind so many of each row; how many there are then."""
    rows, kv_heads, tokens, _ = pairs[0][1].shape
    after = mx.clip(lengths + tokens, tokens, pairs[0][0].shape[2])
    columns = (after[:, None] - tokens + mx.arange(tokens, dtype=mx.int32)).reshape(-1)
    row_of = mx.repeat(mx.arange(rows), tokens)
    for slab, new in pairs:
        slab[row_of, :, columns] = new.swapaxes(1, 2).reshape(rows * tokens, kv_heads, -1)
    return after


def _attended(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array | str | None
) -> mx.array:
    wide_queries, wide_keys, wide_values = (each.astype(mx.float32) for each in (queries, keys, values))
    attended = mx.fast.scaled_dot_product_attention(wide_queries, wide_keys, wide_values, scale=scale, mask=mask)
    return attended.astype(queries.dtype)


def _norm(x: mx.array, *parts: mx.array | None) -> None:
    _floating(x=x)
    _require(x.ndim >= 1 and x.shape[-1] > 0, "x must have at least one axis, which is not empty")
    given = [part for part in parts if part is not None]
    for part in given:
        _floating(weight=part)
        _require(part.shape == x.shape[-1:], f"weight {part.shape} does not fit x {x.shape}")
    _require(len({part.dtype for part in given}) < 2, "weight and bias must have one type")


def _alike(gate: mx.array, x: mx.array) -> None:
    _floating(x=x)
    _require(gate.dtype == x.dtype and gate.shape == x.shape, "gate and x must have one shape and type")


def _slabs(queries: mx.array, keys: mx.array, values: mx.array) -> None:
    _floating(queries=queries, keys=keys)
    _require(queries.ndim == keys.ndim == 4, "queries, keys and values must be [rows, heads, tokens, size]")
    _require(
        keys.shape[1] > 0 and queries.shape[1] % keys.shape[1] == 0,
        "the heads of queries must be a multiple of those of keys and values",
    )
    _require(queries.shape[3] % 16 == 0 and queries.size > 0, "the size of a head must be a multiple of 16")
    _require(keys.shape == values.shape and keys.dtype == values.dtype, "keys and values must be alike")
    _require(keys.shape[3] == queries.shape[3], f"keys {keys.shape} do not fit queries {queries.shape}")
    _require(keys.shape[2] >= queries.shape[2], "there are fewer columns than queries")


def _quantized(
    queries: mx.array, keys: Sequence[mx.array], values: Sequence[mx.array], group_size: int, bits: int
) -> None:
    _require(len(keys) == 3 and len(values) == 3, "keys and values must each be values, scales and biases")
    _require(bits in (4, 8), "bits must be 4 or 8")
    _require(group_size in GROUP_SIZES, "group_size must be 32, 64 or 128")
    for side in (keys, values):
        _require(
            side[0].dtype == mx.uint32
            and side[0].shape == keys[0].shape
            and side[0].shape[-1] * 32 == queries.shape[-1] * bits,
            f"quantised keys and values do not fit heads of {queries.shape[-1]}",
        )
        _floating(scales=side[1])
        _require(
            queries.shape[-1] % group_size == 0
            and side[1].shape == side[2].shape == (*side[0].shape[:-1], queries.shape[-1] // group_size)
            and side[1].dtype == side[2].dtype == keys[1].dtype,
            "scales and biases do not fit the quantised values",
        )


def _new(queries: mx.array, keys: mx.array, values: mx.array, slab: mx.array, dtype: mx.Dtype) -> None:
    _require(
        keys.shape == values.shape == (queries.shape[0], slab.shape[1], queries.shape[2], queries.shape[3]),
        f"new keys {keys.shape} do not fit queries {queries.shape}",
    )
    _require(keys.dtype == values.dtype == dtype, "new keys and values must be of the slabs' type")


def _lengths(lengths: mx.array, queries: mx.array, keys: mx.array) -> None:
    _require(lengths.dtype == mx.int32 and lengths.shape == queries.shape[:1], "lengths must be int32, one a row")
    _require(keys.shape[0] >= queries.shape[0], "there are fewer slots than rows")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _floating(**arrays: mx.array) -> None:
    for name, array in arrays.items():
        _require(array.dtype in FLOATING, f"{name} must be float32, float16 or bfloat16")
