"""What rows take from the prefix cache, and what they leave in it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import mlx_lm
import structlog

from mlx_serving.actors.generation.engine import HeldPrefixes
from mlx_serving.actors.generation.mlx_engine.cache_parts import CacheParts
from mlx_serving.actors.generation.mlx_engine.caches import Caches
from mlx_serving.actors.generation.mlx_engine.prefix_cache import Hit, PrefixCache
from mlx_serving.actors.generation.mlx_engine.row import Row
from mlx_serving.actors.generation.prefix.disk import DiskTier
from mlx_serving.actors.messages.values import CacheStats, CacheTier
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.actors.prefix_digests import namespace
from mlx_serving.config.schema import Generation

_log = structlog.get_logger(actor="prefix cache")
_WORTH_WAITING = 256
"""Tokens that two prompts share from which the second waits for the first to compute them."""


def reuse_for(
    record: ModelRecord,
    settings: Generation,
    new_caches: Callable[[], Caches],
    limit_bytes: int,
    capacity: Callable[[int], int] | None = None,
) -> Reuse:
    """With a prefix cache of `limit_bytes`, unless that is 0 or the model's caches are of no known kind.

    `capacity`: see `Reuse`.
    """
    if not limit_bytes or not CacheParts(new_caches()).is_known:
        return Reuse(None)
    base = f"{record.fingerprint} {record.dtype} {settings.kv_type} mlx-lm {mlx_lm.__version__}".encode()
    chosen = settings.prefix_cache
    disk_bytes = chosen.disk_bytes if chosen.directory else 0
    tier = None
    if disk_bytes:
        model = hashlib.blake2b(base, digest_size=16).hexdigest()
        tier = DiskTier(Path(chosen.directory), model, disk_bytes, _log.warning)
    cache = PrefixCache(base, new_caches, limit_bytes, chosen.block_tokens, tier, disk_bytes)
    return Reuse(cache, base, chosen.block_tokens, capacity)


class Reuse:
    """Belongs to the engine's thread. Without a cache nothing is taken or left.

    A cache that fails, as for lack of memory, is given up with a warning: no row fails for it.
    """

    def __init__(
        self,
        cache: PrefixCache | None,
        base: bytes = b"",
        block_tokens: int = 1,
        capacity: Callable[[int], int] | None = None,
    ) -> None:
        """Namespaces begin from `base`. `capacity`: where prompts of rows without an adapter are written to caches in
        place, what these have room for that are to hold so many tokens."""
        self._cache = cache
        self._base = base
        self._block_tokens = block_tokens
        self._capacity = capacity

    @property
    def needs_segments(self) -> bool:
        """Whether prompts are kept at certain places only."""
        return self._cache is not None and self._cache.has_states

    def queue(self, row: Row) -> None:
        """A row is new: start to look on disk."""
        if self._cache is not None:
            row.namespace = namespace(self._base, row.sequence.cache_salt, row.sequence.adapter)
            row.prefetch = self._cache.prefetch(row.namespace, row.ids)

    def must_wait(self, row: Row, filling: Sequence[Row], is_busy: bool) -> bool:
        """Whether a row had better not begin yet.

        What it needs is still being read while there is other work, or is just being computed for another row.
        """
        if self._cache is None or row.is_suspect:
            return False
        if row.prefetch is not None and not row.prefetch.done() and (is_busy or filling):
            return True
        return any(self._computes_for(other, row) for other in filling if not other.is_paused)

    def begin(self, row: Row) -> None:
        """A row is admitted: take up what is held of its prompt, if the row is not under suspicion."""
        end = len(row.ids) - 1
        prefetch, row.prefetch = row.prefetch, None
        with self._unless_it_fails() as cache:
            if cache is None:
                return
            hit = cache.lookup(row.namespace, row.ids, prefetch) if not row.is_suspect else None
            if hit is not None:
                row.caches, row.filled = self._caches_of(hit, row), hit.tokens
                row.cached_tokens = min(hit.tokens, row.prompt_tokens)
                row.kept = hit.tokens
            row.stops = cache.checkpoint_offsets(row.sequence.segments, row.filled, end)

    def advance(self, row: Row) -> None:
        """A row has got further with its prompt: keep what it has where it stopped for that, and whole blocks on the
        way, so that the step that ends a long prompt has not to copy all of it."""
        if row.caches is None or self._cache is None:
            return
        held = row.filled
        if row.stops and held >= row.stops[0]:
            row.stops.pop(0)
        elif not self._cache.has_states and held // self._block_tokens > row.kept // self._block_tokens:
            held -= held % self._block_tokens
        else:
            return
        row.kept = held
        if row.is_suspect:
            return
        with self._unless_it_fails() as cache:
            if cache is not None:
                cache.store(row.namespace, row.ids[:held], row.caches)

    def leave(self, row: Row, view: Callable[[], Caches], is_alone: bool) -> None:
        """A row is about to leave the batch for good; `view` gives its caches. `is_alone`: no other row stays.

        States are good for exactly what was fed, whose last tokens may not be known yet: `end` follows then.
        """
        with self._unless_it_fails() as cache:
            if cache is None or row.is_failed:
                return
            caches = view()
            if row.is_gone or not cache.has_states:
                _keep(cache, row, caches, wait=not is_alone)
            else:
                row.caches = caches

    def end(self, row: Row) -> None:
        """A row has said its last token; if it is out of the batch, keep what it has."""
        with self._unless_it_fails() as cache:
            if cache is not None and row.caches is not None:
                _keep(cache, row, row.caches, wait=False)

    def distrust(self, row: Row) -> None:
        """A row's output was not finite: what it shared must not be used again."""
        if self._cache is not None:
            self._cache.distrust(row.namespace, row.ids)

    def resize(self, limit_bytes: int) -> None:
        """Bound what is kept in memory by so many bytes from now on."""
        if self._cache is not None:
            self._cache.resize(limit_bytes)

    def computed(self, tokens: int, seconds: float) -> None:
        """So many tokens of a prompt went through the model while nothing else did."""
        if self._cache is not None:
            self._cache.computed(tokens, seconds)

    def turn(self) -> None:
        """A step went by."""
        with self._unless_it_fails() as cache:
            if cache is not None:
                cache.turn()

    def rest(self) -> None:
        """No row is left."""
        with self._unless_it_fails() as cache:
            if cache is not None:
                cache.rest()

    def stats(self) -> CacheStats:
        return self._cache.stats() if self._cache is not None else CacheStats(enabled=False)

    def clear(self, tier: CacheTier) -> None:
        if self._cache is not None:
            self._cache.clear(tier)

    def held(self) -> HeldPrefixes | None:
        return self._cache.held() if self._cache is not None else None

    def close(self) -> None:
        if self._cache is not None:
            self._cache.close()

    def _caches_of(self, hit: Hit, row: Row) -> Caches:
        tokens = len(row.ids) + 1
        if self._capacity is None or row.adapter:
            return hit.caches(tokens)
        return hit.caches(self._capacity(tokens), in_one=True)

    @contextmanager
    def _unless_it_fails(self) -> Iterator[PrefixCache | None]:
        try:
            yield self._cache
        except Exception as error:
            _log.warning("the prefix cache is given up", reason=f"{type(error).__name__}: {error}")
            cache, self._cache = self._cache, None
            if cache is not None:
                cache.close()

    def _computes_for(self, other: Row, row: Row) -> bool:
        """Whether another row is computing a good part of this one's prompt."""
        assert self._cache is not None
        if other.namespace != row.namespace or other.is_suspect:
            return False
        if self._cache.has_states:
            return other.ids[: other.prompt_tokens] == row.ids
        worth = other.cached_tokens + _WORTH_WAITING
        return worth < len(row.ids) and row.ids[:worth] == other.ids[:worth]


def _keep(cache: PrefixCache, row: Row, caches: Caches, wait: bool) -> None:
    """Store what the caches of a row hold of its ids."""
    held = cache.parts.length(caches)
    if held is None:
        held = row.prompt_tokens - 1 + row.sampling.position
    if held <= len(row.ids) or not cache.has_states:
        cache.store(row.namespace, row.ids[:held], caches, wait)
