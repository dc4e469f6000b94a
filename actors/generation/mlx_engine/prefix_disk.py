"""The disk tier as the prefix cache uses it: parts go out some steps after they were stored, and come back.

Where the device has memory of its own, files are read to memory that it copies from at the speed of the bus.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import mlx.core as mx
import numpy as np

from mlx_serving.actors.generation.mlx_engine import cache_tensors
from mlx_serving.actors.generation.mlx_engine import caches as prompt_caches
from mlx_serving.actors.generation.mlx_engine.cache_parts import CacheParts, KvBlock, Snapshot
from mlx_serving.actors.generation.mlx_engine.caches import Caches
from mlx_serving.actors.generation.mlx_engine.host_memory import HostStage
from mlx_serving.actors.generation.prefix.blocks import Block, Piece
from mlx_serving.actors.generation.prefix.checkpoints import Checkpoint
from mlx_serving.actors.generation.prefix.disk import DiskTier, Fetch
from mlx_serving.actors.generation.prefix.disk_arrival import Fetched
from mlx_serving.actors.generation.prefix.disk_record import Record, fresh_memory
from mlx_serving.actors.generation.prefix.disk_search import Wanted
from mlx_serving.actors.generation.prefix.keys import prefix_keys
from mlx_serving.actors.messages.values import pack_ids

_TURNS_HELD = 32
"""Steps after which a part is written: by then its arrays are computed, and often it has been replaced by more."""
_HELD_BYTES = 128 << 20
_STAGE_BYTES = 256 << 20
"""As much as 2,000 tokens of a model of 8 billion weights; what is more is copied by the host once more."""
_LEAST_BROUGHT = 24 << 20
"""Bytes that are set going at once: less takes the host longer than the bus."""
_BROKEN = (ValueError, KeyError, TypeError, StopIteration)

_log = logging.getLogger(__name__)


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
        self._brought: list[tuple[mx.array, Fetched]] = []
        """What is copied to the device, with the memory that it comes from, since the last step."""
        self._waiting: list[mx.array] = []
        """Of these, what is not set going yet."""
        self._stage: HostStage | None = None
        self._staging = threading.Thread(target=self._make_stage, name="prefix-stage", daemon=True)
        if cache_tensors.has_memory_apart():
            tier.read_to(self._memory)
            self._staging.start()

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
        self._let_go()
        self._turn += 1
        if self._outgoing and (
            self._turn - self._outgoing[0].since >= _TURNS_HELD or self._outgoing_bytes > _HELD_BYTES
        ):
            self._hand_over()

    def rest(self) -> None:
        """Nothing runs: hand everything over."""
        self._let_go()
        while self._outgoing:
            self._hand_over()

    def prefetch(self, wanted: Wanted) -> Fetch:
        return self.tier.fetch(wanted)

    def returned(self, prefetch: Fetch) -> Returned:
        """Wait for what a prefetch brings, and have it copied to the device while more is read, and while what follows
        it is built.

        What is not as it was written is dropped, with what follows it; blocks without the state that was to follow
        them are of no use.
        """
        pieces: list[Piece[KvBlock]] = []
        snapshot, state_tokens = None, 0
        caches = self._new_caches()
        begun = time.monotonic()
        for fetched in prefetch:
            begun = time.monotonic()
            content = fetched.content
            try:
                if fetched.entry.is_state:
                    snapshot, state_tokens = cache_tensors.read_snapshot(content.tensors, content.note), fetched.stop
                else:
                    piece = self._piece(fetched, caches)
                    pieces.append(piece)
                    self._bring(piece.payload.arrays, fetched)
            except _BROKEN:
                self.tier.drop([fetched.entry])
                break
        self._go()
        if self._parts.has_states and snapshot is None:
            pieces.clear()
        self.tier.worth.taken(sum(piece.payload.nbytes for piece in pieces), time.monotonic() - begun)
        return Returned(tuple(pieces), snapshot, state_tokens)

    def computed(self, tokens: int, seconds: float) -> None:
        """So many tokens of a prompt went through the model while nothing else did."""
        self.tier.worth.computed(tokens, seconds)

    def clear(self) -> None:
        """Nothing is left on disk or on its way there."""
        self._outgoing.clear()
        self._outgoing_bytes = 0
        self.tier.clear()

    def close(self) -> None:
        try:
            self.rest()
        finally:
            self.tier.close()
        if self._staging.ident is not None:
            self._staging.join()

    def _piece(self, fetched: Fetched, caches: Caches) -> Piece[KvBlock]:
        tokens = fetched.entry.stop - fetched.entry.start
        content = fetched.content
        packed = cache_tensors.read_packed(content, self._copied)
        if packed is None:
            block = self._parts.block(cache_tensors.read_block(content.tensors, content.note), tokens)
        else:
            block = self._parts.packed_block(packed, tokens)
        if not self._parts.fits(block, tokens, caches):
            raise ValueError("the block has the form of another model's")
        return Piece(fetched.start, fetched.stop, block)

    def _bring(self, arrays: Sequence[mx.array], fetched: Fetched) -> None:
        """Have arrays computed on the device some time soon."""
        if self._stage is None:
            return
        self._waiting += arrays
        self._brought += [(array, fetched) for array in arrays]
        if sum(array.nbytes for array in self._waiting) >= _LEAST_BROUGHT:
            self._go()

    def _go(self) -> None:
        """Set going what waits for it."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            prompt_caches.start(waiting)

    def _let_go(self) -> None:
        """Of memory that was copied from; it is waited for, though a step that needed it has long done so."""
        brought, self._brought = self._brought, []  # what failed once is not waited for again
        if brought:
            mx.eval([array for array, _ in brought])

    def _make_stage(self) -> None:
        try:
            self._stage = HostStage(_STAGE_BYTES)
        except Exception as error:  # of MLX, for lack of memory
            _log.warning("what is on disk reaches the device slowly: %s", error)

    def _memory(self, nbytes: int) -> memoryview:
        """For a file; asked for by the tier's threads."""
        part = self._stage.take(nbytes) if self._stage is not None else None
        return fresh_memory(nbytes) if part is None else part

    def _copied(self, data: memoryview) -> mx.array:
        found = self._stage.on_device(data) if self._stage is not None else None
        return mx.array(np.frombuffer(data, dtype=np.uint8)) if found is None else found

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
