"""Rewrites ggml's blocks of quantised weights as MLX's affine form: packed codes, scale and bias per group.

MLX reads a weight as `scale * code + bias`. ggml's Q4_0, Q5_0 and Q8_0 mean `scale * (code - offset)`, so
their bias is `-offset * scale`; the offsets are powers of two, which makes that exact in float16. Q4_1 and
Q5_1 store the bias. In Q4_K and Q5_K scale and bias of each 32 weights are a float16 times a 6 bit integer:
exact in float32, rounded to 11 bits where scales are kept as float16. The codes never change.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
GROUP_SIZE = 32


@attrs.frozen(eq=False)
class Groups:
    """Rows of weights in groups of 32: codes [rows, columns], scales and biases [rows, columns / 32]."""

    codes: Bytes
    scales: NDArray[np.floating]
    biases: NDArray[np.floating]


@attrs.frozen
class Repacking:
    """`bits` per code; `exact` if float16 holds scales and biases without rounding."""

    bits: int
    exact: bool
    unpack: Callable[[Bytes], Groups]


def pack(codes: Bytes, bits: int) -> NDArray[np.uint32]:
    """Codes [rows, columns] as MLX stores them: a stream of bits per row, lowest first, in 32 bit words."""
    rows = codes.shape[0]
    if bits == 8:
        packed = np.ascontiguousarray(codes)
    elif bits == 4:
        packed = codes[:, 0::2] | (codes[:, 1::2] << np.uint8(4))
    else:
        packed = _pack_eights(codes, bits)
    return packed.reshape(rows, -1).view("<u4")


def _pack_eights(codes: Bytes, bits: int) -> Bytes:
    """Eight codes of up to 8 bits fill `bits` bytes: join them in a 64 bit word and keep its low bytes."""
    eights = codes.reshape(codes.shape[0], -1, 8).astype("<u8")
    words = np.zeros(eights.shape[:2], "<u8")
    for index in range(8):
        words |= eights[:, :, index] << np.uint64(bits * index)
    return np.ascontiguousarray(words.view(np.uint8).reshape(*words.shape, 8)[:, :, :bits])


def _blocks(raw: Bytes, size: int) -> Bytes:
    return raw.reshape(raw.shape[0], -1, size)


def _half(blocks: Bytes, at: int) -> NDArray[np.float16]:
    """The float16 at byte `at` of each block: [rows, blocks]."""
    return np.ascontiguousarray(blocks[:, :, at : at + 2]).view("<f2")[:, :, 0]


def _flat(codes: Bytes) -> Bytes:
    return codes.reshape(codes.shape[0], -1)


def _nibbles(quants: Bytes) -> Bytes:
    """The low halves of the bytes are the first weights, the high halves the rest."""
    return np.concatenate([quants & 0x0F, quants >> 4], axis=-1)


def _fifth_bits(high: Bytes) -> Bytes:
    """Bit i of four bytes belongs to weight i; it counts 16."""
    return np.unpackbits(high, axis=-1, bitorder="little") << np.uint8(4)


def _q4_0(raw: Bytes) -> Groups:
    blocks = _blocks(raw, 18)
    scale = _half(blocks, 0)
    return Groups(_flat(_nibbles(blocks[:, :, 2:])), scale, scale * np.float16(-8))


def _q4_1(raw: Bytes) -> Groups:
    blocks = _blocks(raw, 20)
    return Groups(_flat(_nibbles(blocks[:, :, 4:])), _half(blocks, 0), _half(blocks, 2))


def _q5_0(raw: Bytes) -> Groups:
    blocks = _blocks(raw, 22)
    scale = _half(blocks, 0)
    codes = _nibbles(blocks[:, :, 6:]) | _fifth_bits(blocks[:, :, 2:6])
    return Groups(_flat(codes), scale, scale * np.float16(-16))


def _q5_1(raw: Bytes) -> Groups:
    blocks = _blocks(raw, 24)
    codes = _nibbles(blocks[:, :, 8:]) | _fifth_bits(blocks[:, :, 4:8])
    return Groups(_flat(codes), _half(blocks, 0), _half(blocks, 2))


def _q8_0(raw: Bytes) -> Groups:
    blocks = _blocks(raw, 34)
    scale = _half(blocks, 0)
    return Groups(_flat(blocks[:, :, 2:] ^ np.uint8(0x80)), scale, scale * np.float16(-128))


def _q4_k(raw: Bytes) -> Groups:
    blocks = _blocks(raw, 144)
    scales, biases = _k_scales(blocks)
    return Groups(_k_nibbles(blocks[:, :, 16:]), scales, biases)


def _q5_k(raw: Bytes) -> Groups:
    blocks = _blocks(raw, 176)
    scales, biases = _k_scales(blocks)
    # Bit g of high byte i belongs to weight i of group g.
    bits = np.unpackbits(blocks[:, :, 16:48, None], axis=-1, bitorder="little")
    fifth = _flat(np.ascontiguousarray(bits.swapaxes(2, 3))) << np.uint8(4)
    return Groups(_k_nibbles(blocks[:, :, 48:]) | fifth, scales, biases)


def _k_nibbles(quants: Bytes) -> Bytes:
    """Each 32 bytes hold two groups: the low halves one, the high halves the next."""
    return _flat(_nibbles(quants.reshape(*quants.shape[:2], 4, 32)))


def _k_scales(blocks: Bytes) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scales and biases of the eight groups of each block, out of 6 bit integers packed in 12 bytes."""
    packed = blocks[:, :, 4:16]
    low_scale, low_bias, high = packed[:, :, :4], packed[:, :, 4:8], packed[:, :, 8:]
    scale = np.concatenate([low_scale & 63, (high & 15) | ((low_scale >> 6) << 4)], axis=-1)
    bias = np.concatenate([low_bias & 63, (high >> 4) | ((low_bias >> 6) << 4)], axis=-1)
    unit_scale = _half(blocks, 0).astype(np.float32)[:, :, None]
    unit_bias = _half(blocks, 2).astype(np.float32)[:, :, None]
    rows = blocks.shape[0]
    return (unit_scale * scale).reshape(rows, -1), (-unit_bias * bias).reshape(rows, -1)


REPACKED: dict[GGMLQuantizationType, Repacking] = {
    GGMLQuantizationType.Q4_0: Repacking(4, True, _q4_0),
    GGMLQuantizationType.Q4_1: Repacking(4, True, _q4_1),
    GGMLQuantizationType.Q5_0: Repacking(5, True, _q5_0),
    GGMLQuantizationType.Q5_1: Repacking(5, True, _q5_1),
    GGMLQuantizationType.Q8_0: Repacking(8, True, _q8_0),
    GGMLQuantizationType.Q4_K: Repacking(4, False, _q4_k),
    GGMLQuantizationType.Q5_K: Repacking(5, False, _q5_k),
}
