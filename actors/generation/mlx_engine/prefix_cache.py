"""The prefix cache: what was computed for earlier prompts and answers, for prompts that begin alike.

- Keys and values are kept in blocks, under a radix index that finds the longest common prefix to the token.
- What other layers hold (windows, recurrent states) is good for one exact prefix. It is kept at checkpoints, and a
  prompt is taken up at the latest one that its blocks reach.
- Both share one bound in bytes, and what was used least recently goes first.
- Storing copies only what is new, and neither storing nor building waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import count

import attrs
import mlx.core as mx

from mlx_serving.actors.generation.engine import HeldPrefixes
from mlx_serving.actors.generation.mlx_engine import caches as prompt_caches
from mlx_serving.actors.generation.mlx_engine.cache_parts import CacheParts, KvBlock, Snapshot, state_arrays
from mlx_serving.actors.generation.mlx_engine.caches import Caches
from mlx_serving.actors.generation.mlx_engine.device import back_end
from mlx_serving.actors.generation.mlx_engine.prefix_disk import PrefixDisk
from mlx_serving.actors.generation.prefix.blocks import Piece, Span
from mlx_serving.actors.generation.prefix.budget import evict
from mlx_serving.actors.generation.prefix.checkpoints import Checkpoint, Checkpoints
from mlx_serving.actors.generation.prefix.disk import DiskTier, Fetch
from mlx_serving.actors.generation.prefix.disk_search import Wanted
from mlx_serving.actors.generation.prefix.index import Ids, PrefixIndex
from mlx_serving.actors.generation.prefix.node import Path
from mlx_serving.actors.generation.prefix.spacing import checkpoint_offsets
from mlx_serving.actors.messages.values import CacheStats, CacheTier

LEAST_TOKENS = 16
"""A shorter prefix is computed faster than its caches are put together."""
_LEAST_FROM_DISK = {"cpu": LEAST_TOKENS, "metal": 64, "cuda": 64}
"""Fewer are not looked for on disk: on a GPU they take one pass, as what is behind them does in any case."""
_CHECKPOINTS = 16
_SHARE_OF_A_PROMPT = 4
"""One prompt's checkpoints take at most this part of the memory."""


@attrs.define(eq=False)
class Hit:
    """The first `tokens` tokens of a prompt. It is pinned until `caches` was called."""

    tokens: int
    _cache: PrefixCache
    _spans: list[Span[KvBlock]]
    _checkpoint: Checkpoint[Snapshot] | None
    _pins: ExitStack

    def caches(self, room: int = 0, in_one: bool = False) -> Caches:
        """Plain caches of one row that hold the tokens, with room for `room` in all. To be called once.

        `in_one`: see `CacheParts.build`.
        """
        with self._pins:
            snapshot = self._checkpoint.payload if self._checkpoint is not None else None
            return self._cache.parts.build(self._cache.new_caches(), self._spans, snapshot, room, in_one)


class PrefixCache:
    """Belongs to the engine's thread."""

    def __init__(
        self,
        base: bytes,
        new_caches: Callable[[], Caches],
        limit_bytes: int,
        block_tokens: int,
        tier: DiskTier | None = None,
        disk_limit_bytes: int = 0,
    ) -> None:
        """`base` stands for the weights and the format of caches; namespaces begin from it."""
        self.new_caches = new_caches
        self.parts = CacheParts(new_caches())
        self._base = base
        self._limit = limit_bytes
        ticks = count()
        self._index: PrefixIndex[KvBlock] = PrefixIndex(ticks, block_tokens)
        self._checkpoints: Checkpoints[Snapshot] = Checkpoints(ticks)
        self._stores = (self._index, self._checkpoints)
        self._disk = PrefixDisk(tier, self.parts, new_caches) if tier is not None else None
        self._stats = CacheStats(enabled=True, limit_bytes=limit_bytes, disk_limit_bytes=disk_limit_bytes)

    @property
    def has_states(self) -> bool:
        """Whether prefill has to stop for checkpoints."""
        return self.parts.has_states

    def checkpoint_offsets(self, segments: Sequence[int], start: int, end: int) -> list[int]:
        """Where the prefill of a prompt's tokens (start, end] stops for `store`; `end` is the last."""
        if not self.has_states:
            return [end]
        most = _CHECKPOINTS
        if self._checkpoints.entries:
            average = max(1, self._checkpoints.bytes // self._checkpoints.entries)
            most = max(1, min(most, self._limit // (_SHARE_OF_A_PROMPT * average)))
        return checkpoint_offsets(segments, start, end, most)

    def prefetch(self, namespace: bytes, ids: Sequence[int]) -> Fetch | None:
        """Look on disk for more than memory holds of a prompt; the result is for `lookup`. None: there is no need."""
        if self._disk is None:
            return None
        wanted = tuple(ids[:-1])
        path, checkpoint = self._match(namespace, wanted)
        held = self._reach(path, checkpoint)
        if len(wanted) - held < _LEAST_FROM_DISK[back_end()]:
            return None
        state = checkpoint.tokens if checkpoint is not None else 0
        parts = self.parts
        return self._disk.prefetch(
            Wanted(namespace, wanted, parts.has_blocks, parts.has_states, blocks=path.tokens, state=state)
        )

    def lookup(self, namespace: bytes, ids: Sequence[int], prefetched: Fetch | None = None) -> Hit | None:
        """The longest prefix held of a prompt, at most all but its last token. Waits for what was prefetched."""
        wanted = tuple(ids[:-1])
        from_disk = self._take_in(namespace, wanted, prefetched) if prefetched is not None else 0
        path, checkpoint = self._match(namespace, wanted)
        tokens = self._reach(path, checkpoint)
        stats = self._stats
        stats = attrs.evolve(stats, lookups=stats.lookups + 1, lookup_tokens=stats.lookup_tokens + len(ids))
        if tokens < LEAST_TOKENS:
            self._stats = stats
            return None
        self._stats = attrs.evolve(
            stats,
            hits=stats.hits + 1,
            hit_tokens=stats.hit_tokens + tokens,
            disk_hit_tokens=stats.disk_hit_tokens + min(from_disk, tokens),
        )
        return self._hit(path.cut(tokens), checkpoint)

    def store(self, namespace: bytes, ids: Sequence[int], caches: Caches, wait: bool = False) -> None:
        """Keep what `caches` of one row hold of `ids`; with checkpoints, they must hold exactly these.

        With `wait`, the copies are made when it returns, and writing to the caches need not spare what they read.
        """
        ids = tuple(ids)
        if len(ids) < LEAST_TOKENS:
            return
        copies = self._store_blocks(namespace, ids, caches)
        if self.has_states and not self._checkpoints.touch_exact(namespace, ids):
            copies += self._store_state(namespace, ids, caches)
        if wait:
            mx.eval(copies)
        else:
            prompt_caches.start(copies)

    def distrust(self, namespace: bytes, ids: Sequence[int]) -> None:
        """A row that used or stored a beginning of `ids` went wrong: forget all that begins alike."""
        self._index.remove(self._index.match(namespace, tuple(ids)))
        self._checkpoints.remove(namespace, ids)

    def computed(self, tokens: int, seconds: float) -> None:
        """So many tokens of a prompt went through the model while nothing else did."""
        if self._disk is not None:
            self._disk.computed(tokens, seconds)

    def turn(self) -> None:
        """A step went by."""
        if self._disk is not None:
            self._disk.turn()

    def rest(self) -> None:
        """Nothing runs: there is time to write."""
        if self._disk is not None:
            self._disk.rest()

    def clear(self, tier: CacheTier) -> None:
        """Forget what a tier holds. Rows that run are not disturbed."""
        if tier in ("memory", "all"):
            self._index.clear()
            self._checkpoints.clear()
        if tier in ("disk", "all") and self._disk is not None:
            self._disk.clear()

    def resize(self, limit_bytes: int) -> None:
        """Keep to another bound from now on."""
        self._limit = limit_bytes
        self._stats = attrs.evolve(self._stats, limit_bytes=limit_bytes)
        self._make_room(0)

    def stats(self) -> CacheStats:
        stats = attrs.evolve(
            self._stats,
            entries=max(self._index.entries, self._checkpoints.entries),
            tokens=self._index.tokens,
            bytes=self._index.bytes + self._checkpoints.bytes,
        )
        if self._disk is None:
            return stats
        tier = self._disk.tier
        return attrs.evolve(
            stats,
            disk_entries=tier.figures.entries,
            disk_tokens=tier.figures.tokens,
            disk_bytes=tier.figures.bytes,
            dropped=tier.dropped,
        )

    def held(self) -> HeldPrefixes:
        return HeldPrefixes(self._base, self._index.version, self._index.digests)

    def close(self) -> None:
        """Write what waits to be written, and let everything go."""
        if self._disk is not None:
            self._disk.close()
        self._index.clear()
        self._checkpoints.clear()

    # --- looking up -----------------------------------------------------------------------------------------

    def _match(self, namespace: bytes, ids: Ids) -> tuple[Path[KvBlock], Checkpoint[Snapshot] | None]:
        path = self._index.match(namespace, ids)
        if not self.has_states:
            return path, None
        return path, self._checkpoints.longest(namespace, ids[: path.tokens] if self.parts.has_blocks else ids)

    def _reach(self, path: Path[KvBlock], checkpoint: Checkpoint[Snapshot] | None) -> int:
        if not self.has_states:
            return path.tokens
        return checkpoint.tokens if checkpoint is not None else 0

    def _hit(self, path: Path[KvBlock], checkpoint: Checkpoint[Snapshot] | None) -> Hit:
        pins = ExitStack()
        pins.enter_context(self._index.pinned(path))
        self._index.touch(path)
        tokens = path.tokens
        if checkpoint is not None:
            pins.enter_context(self._checkpoints.pinned(checkpoint))
            self._checkpoints.touch(checkpoint)
            tokens = checkpoint.tokens
        return Hit(tokens, self, path.spans(tokens) if self.parts.has_blocks else [], checkpoint, pins)

    def _take_in(self, namespace: bytes, ids: Ids, prefetched: Fetch) -> int:
        """Put what came from disk into memory. Returns how many tokens further a prompt gets by it."""
        assert self._disk is not None
        returned = self._disk.returned(prefetched)
        before = self._reach(*self._match(namespace, ids))
        path = self._index.match(namespace, ids)
        pieces = [piece for piece in returned.pieces if piece.stop > path.tokens]
        if pieces and pieces[0].start <= path.tokens:
            with self._index.pinned(path):
                self._make_room(sum(piece.payload.nbytes for piece in pieces))
                self._index.insert(path, ids[: pieces[-1].stop], pieces)
        if returned.snapshot is not None:
            self._make_room(returned.snapshot.nbytes)
            self._checkpoints.add(namespace, ids[: returned.state_tokens], returned.snapshot)
        self._make_room(0)
        return self._reach(*self._match(namespace, ids)) - before

    # --- storing --------------------------------------------------------------------------------------------

    def _store_blocks(self, namespace: bytes, ids: Ids, caches: Caches) -> list[mx.array]:
        """Returns the copies that are to be made."""
        per_token = self.parts.bytes_per_token(caches)
        ids = ids[: self._limit // per_token]
        path = self._index.match(namespace, ids)
        missing = self._index.missing(path, len(ids))
        with self._index.pinned(path):
            self._make_room(per_token * (len(ids) - path.tokens))
            pieces = [Piece(start, stop, self.parts.cut(caches, start, stop)) for start, stop in missing]
            blocks = self._index.insert(path, ids, pieces)
        self._make_room(0)
        if self._disk is not None:
            self._disk.keep_blocks(namespace, ids, blocks)
        return [array for piece in pieces for array in piece.payload.arrays]

    def _store_state(self, namespace: bytes, ids: Ids, caches: Caches) -> list[mx.array]:
        """Returns the copies that are to be made."""
        snapshot = self.parts.snapshot(caches)
        if snapshot.nbytes > self._limit:
            return []
        self._make_room(snapshot.nbytes)
        checkpoint = self._checkpoints.add(namespace, ids, snapshot)
        if self._disk is not None:
            self._disk.keep_state(namespace, checkpoint, snapshot)
        return state_arrays(snapshot.states)

    def _make_room(self, nbytes: int) -> None:
        evicted = evict(self._stores, max(0, self._limit - nbytes))
        if evicted:
            self._stats = attrs.evolve(self._stats, evicted=self._stats.evicted + evicted)
