"""The disk tier as the prefix cache uses it: parts go out some steps after they were stored, and come back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import attrs

from mlx_serving.actors.generation.mlx_engine import cache_tensors
from mlx_serving.actors.generation.mlx_engine.cache_parts import CacheParts, KvBlock, Snapshot
from mlx_serving.actors.generation.mlx_engine.caches import Caches
from mlx_serving.actors.generation.prefix.blocks import Block, Piece
from mlx_serving.actors.generation.prefix.checkpoints import Checkpoint
from mlx_serving.actors.generation.prefix.disk import DiskTier, Fetched
from mlx_serving.actors.generation.prefix.disk_record import Record
from mlx_serving.actors.generation.prefix.disk_search import Wanted
from mlx_serving.actors.generation.prefix.keys import prefix_keys
from mlx_serving.actors.messages.values import pack_ids

_TURNS_HELD = 32
"""Steps after which a part is written: by then its arrays are computed, and often it has been replaced by more."""
_HELD_BYTES = 128 << 20
_BROKEN = (ValueError, KeyError, TypeError, StopIteration)

Prefetch = Future[list[Fetched]]


@attrs.frozen(eq=False)
class _Outgoing:
    """A part that waits to be written, since turn `since`."""

    since: int
    namespace: bytes
    tokens: bytes
    start: int
    stop: int
    parent: bytes
    key: bytes
    payload: KvBlock | Snapshot
    source: Block[KvBlock] | Checkpoint[Snapshot]

    def record(self) -> Record:
        if isinstance(self.payload, KvBlock):
            tensors, note = cache_tensors.block_tensors(self.payload)
        else:
            tensors, note = cache_tensors.snapshot_tensors(self.payload)
        return Record(self.key, self.parent, self.start, self.stop, self.tokens, tensors, note)


@attrs.frozen(eq=False)
class Returned:
    """What a prefetch brought: pieces that follow each other, and perhaps the state after `state_tokens` tokens."""

    pieces: tuple[Piece[KvBlock], ...]
    snapshot: Snapshot | None
    state_tokens: int


class PrefixDisk:
    """Belongs to the engine's thread; the tier has threads of its own."""

    def __init__(self, tier: DiskTier, parts: CacheParts, new_caches: Callable[[], Caches]) -> None:
        self.tier = tier
        self._parts = parts
        self._new_caches = new_caches
        self._outgoing: deque[_Outgoing] = deque()
        self._outgoing_bytes = 0
        self._lost: set[bytes] = set()
        """Keys of parts that were not kept, and without which others are of no use."""
        self._turn = 0

    def keep_blocks(self, namespace: bytes, ids: Sequence[int], blocks: Sequence[Block[KvBlock]]) -> None:
        """Write these blocks of `ids` later; they follow each other."""
        if not blocks or not self._parts.has_blocks:
            return
        keys = list(prefix_keys(namespace, ids, [blocks[0].start, *(block.stop for block in blocks)]))
        for block, parent, key in zip(blocks, keys, keys[1:], strict=False):
            tokens = pack_ids(ids[block.start : block.stop])
            self._keep(namespace, tokens, block.start, block.stop, parent, key, block.payload, block)

    def keep_state(self, namespace: bytes, checkpoint: Checkpoint[Snapshot], snapshot: Snapshot) -> None:
        """Write a state later."""
        self._keep(namespace, b"", 0, checkpoint.tokens, b"", checkpoint.key, snapshot, checkpoint)

    def turn(self) -> None:
        """A step went by: hand at most one part to the writer, so that no step takes long for it."""
        self._turn += 1
        if self._outgoing and (
            self._turn - self._outgoing[0].since >= _TURNS_HELD or self._outgoing_bytes > _HELD_BYTES
        ):
            self._hand_over()

    def rest(self) -> None:
        """Nothing runs: hand everything over."""
        while self._outgoing:
            self._hand_over()

    def prefetch(self, wanted: Wanted) -> Prefetch:
        return self.tier.fetch(wanted)

    def returned(self, prefetch: Prefetch) -> Returned:
        """Wait for what a prefetch brings. What is not as it was written is dropped, with what follows it."""
        pieces: list[Piece[KvBlock]] = []
        snapshot, state_tokens = None, 0
        caches = self._new_caches()
        for fetched in prefetch.result():
            try:
                if fetched.is_state:
                    snapshot, state_tokens = cache_tensors.read_snapshot(fetched.tensors, fetched.note), fetched.stop
                else:
                    pieces.append(self._piece(fetched, caches))
            except _BROKEN:
                self.tier.drop([fetched.entry])
                break
        return Returned(tuple(pieces), snapshot, state_tokens)

    def clear(self) -> None:
        """Nothing is left on disk or on its way there."""
        self._outgoing.clear()
        self._outgoing_bytes = 0
        self.tier.clear()

    def close(self) -> None:
        self.rest()
        self.tier.close()

    def _piece(self, fetched: Fetched, caches: Caches) -> Piece[KvBlock]:
        tokens = fetched.entry.stop - fetched.entry.start
        block = self._parts.block(cache_tensors.read_block(fetched.tensors, fetched.note), tokens)
        if not self._parts.fits(block, tokens, caches):
            raise ValueError("the block has the form of another model's")
        return Piece(fetched.start, fetched.stop, block)

    def _keep(self, namespace: bytes, tokens: bytes, start: int, stop: int, *rest: Any) -> None:
        outgoing = _Outgoing(self._turn, namespace, tokens, start, stop, *rest)
        self._outgoing.append(outgoing)
        self._outgoing_bytes += outgoing.payload.nbytes

    def _hand_over(self) -> None:
        outgoing = self._outgoing.popleft()
        self._outgoing_bytes -= outgoing.payload.nbytes
        if self.tier.is_on and not outgoing.source.is_void:
            self._put(outgoing)
        if not self._outgoing:
            self._lost.clear()

    def _put(self, outgoing: _Outgoing) -> None:
        try:
            if outgoing.parent in self._lost or not self.tier.put(outgoing.namespace, outgoing.record()):
                self._lost.add(outgoing.key)
        except Exception as error:  # of MLX, whose arrays may fail to reach the host in many ways
            self.tier.turn_off(error)
