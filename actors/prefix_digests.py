"""Names of token prefixes: what a replica says it holds, and what batching looks for, in 8 bytes a block. Pure.

The digest of a block covers the namespace and every token up to the block's end, so one number stands for one whole
prefix, and two processes agree on it without ever having exchanged a token.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from mlx_serving.actors.messages.values import pack_ids
from mlx_serving.native import chained_digests

BLOCK_TOKENS = 64
"""Tokens a digest step covers; a cached prefix is announced in whole blocks."""
_ID_BYTES = 4


def namespace(base: bytes, cache_salt: str = "", adapter: str = "") -> bytes:
    """The name of a space in which prefixes are shared.

    `base` stands for everything that fixes what an engine computes from tokens: weights, cache format. Templates and
    their arguments need no name, the tokens show them.
    """
    return b"%s\0%d\0%s%s" % (base, len(adapter), adapter.encode(), cache_salt.encode())


def block_digests(namespace: bytes, ids: Sequence[int], block: int = BLOCK_TOKENS) -> list[int]:
    """One 64-bit digest for each whole block of `ids`: the k-th names the prefix of `(k + 1) * block` tokens."""
    return packed_block_digests(namespace, pack_ids(ids), block)


def packed_block_digests(namespace: bytes, packed: bytes, block: int = BLOCK_TOKENS) -> list[int]:
    """`block_digests` of ids that are packed already (`pack_ids`)."""
    return chained_digests(blake2b(namespace, digest_size=8).digest(), packed, block * _ID_BYTES)


def pack_digests(digests: Iterable[int]) -> bytes:
    """Digests as little-endian uint64, for the bus."""
    packed = array("Q", digests)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_digests(packed: bytes) -> list[int]:
    """The inverse of `pack_digests`."""
    digests = array("Q")
    digests.frombytes(packed)
    if sys.byteorder == "big":
        digests.byteswap()
    return digests.tolist()
