"""Names of token prefixes: what a replica says it holds, and what batching looks for, in 8 bytes a block. Pure.

The digest of a block covers the namespace and every token up to the block's end, so one number stands for one whole
prefix, and two processes agree on it without ever having exchanged a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from mlx_serving.actors.messages.values import pack_ids

BLOCK_TOKENS = 64
"""Tokens a digest step covers; a cached prefix is announced in whole blocks."""
_ID_BYTES = 4


def block_digests(namespace: bytes, ids: Sequence[int], block: int = BLOCK_TOKENS) -> list[int]:
    """One 64-bit digest for each whole block of `ids`: the k-th names the prefix of `(k + 1) * block` tokens."""
    return packed_block_digests(namespace, pack_ids(ids), block)


def packed_block_digests(namespace: bytes, packed: bytes, block: int = BLOCK_TOKENS) -> list[int]:
    """`block_digests` of ids that are packed already (`pack_ids`)."""
    width = block * _ID_BYTES
    chain = blake2b(namespace, digest_size=8).digest()
    digests = []
    for start in range(0, len(packed) - width + 1, width):
        chain = blake2b(packed[start : start + width], digest_size=8, key=chain).digest()
        digests.append(int.from_bytes(chain, "little"))
    return digests
