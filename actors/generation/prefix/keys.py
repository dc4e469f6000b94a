"""Exact names of prefixes of any length: 16 bytes for a namespace and all tokens up to a position. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b

from mlx_serving.actors.messages.values import pack_ids

ID_BYTES = 4
"""Of one packed token id."""


class RunningKey:
    """The key of a prefix that grows."""

    def __init__(self, namespace: bytes) -> None:
        self._hash = blake2b(len(namespace).to_bytes(4, "little") + namespace, digest_size=16)

    def grow(self, packed: bytes | memoryview) -> None:
        """Append packed token ids."""
        self._hash.update(packed)

    @property
    def key(self) -> bytes:
        return self._hash.copy().digest()


def prefix_keys(namespace: bytes, ids: Sequence[int], positions: Iterable[int]) -> Iterator[bytes]:
    """The keys of the prefixes that end at `positions`, which ascend."""
    packed = memoryview(pack_ids(ids))
    running, done = RunningKey(namespace), 0
    for position in positions:
        running.grow(packed[done * ID_BYTES : position * ID_BYTES])
        done = position
        yield running.key


def prefix_key(namespace: bytes, ids: Sequence[int]) -> bytes:
    """The key of all of `ids`."""
    (key,) = prefix_keys(namespace, ids, [len(ids)])
    return key
