"""The engine protocol: what stands behind a generation actor.

An engine lives on one thread. It turns sequences into tokens, one step at a time, and knows nothing of sockets,
credits or frontends. `MlxEngine` runs models; `ScriptedEngine` says prepared things, for tests and benchmarks.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Protocol

import attrs

from mlx_serving.actors.messages.admission import SequenceOutput
from mlx_serving.actors.messages.batching import SequenceQueued
from mlx_serving.actors.messages.hot import hot
from mlx_serving.actors.messages.values import CacheStats, CacheTier, ModelInfo


@attrs.frozen
class EngineLimits:
    """What an engine can hold: `slots` rows in the batch, `kv_bytes` of cache over all its sequences.

    `weight_bytes` is what its weights take of the `memory_bytes` of its device.
    """

    slots: int
    kv_bytes: int
    weight_bytes: int = 0
    memory_bytes: int = 0


@hot
class StepReport:
    """One step. `outputs` has at most one entry a sequence, and they hold until the next step: copy what is to be kept
    (`generation.object_pooling`). The counters feed telemetry (bytes, tokens).

    `drafted` tokens were proposed by speculation; `accepted` of them in each row that had any. `prefixes` is what
    `cache_stats` says after it.
    """

    outputs: tuple[SequenceOutput, ...] = ()
    rows: int = 0
    tokens: int = 0
    prefill_tokens: int = 0
    active_bytes: int = 0
    cache_bytes: int = 0
    drafted: int = 0
    accepted: tuple[int, ...] = ()
    prefixes: CacheStats | None = None


@attrs.frozen
class HeldPrefixes:
    """Which prompt prefixes a cache holds: digests of whole blocks (`actors/prefix_digests.py`) from `namespace` on.

    `version` changes whenever `digests` does. `digests` may be the cache's own set: copy what is to be kept.
    """

    namespace: bytes
    version: int
    digests: Set[int]


class Engine(Protocol):
    """Load once, then submit, step, cancel, pause and resume in any order, then close."""

    def load(self) -> tuple[ModelInfo, EngineLimits]:
        """Bring the model into memory and warm it up. Raises ModelLoadFailed."""
        ...

    def submit(self, sequence: SequenceQueued, started_at: float) -> None:
        """Take a sequence in; its first output comes from a later `step`. `started_at`: monotonic seconds.

        One whose `max_tokens` is 0 is prefilled into the prefix cache; its one output has an end and no token.

        Raises a ServingError when this sequence can never run; the others are not disturbed.
        """
        ...

    def step(self) -> StepReport:
        """Advance prefill by at most the budget and every running row by one token.

        A row that fails gets an output with `error`; the others go on. Returns at once when there is no work.
        """
        ...

    def cancel(self, sequence_id: int) -> None:
        """Forget a sequence, whatever it is doing. It gets no further output. Unknown ids are ignored."""
        ...

    def pause(self, sequence_id: int) -> None:
        """Keep the cache, leave the batch: no output until `resume`. Unknown ids are ignored."""
        ...

    def resume(self, sequence_id: int) -> None:
        """Return to the batch, with the same tokens to come as if never paused."""
        ...

    @property
    def pending(self) -> int:
        """Sequences that the next step would advance (paused ones do not count)."""
        ...

    def grant(self, kv_bytes: int) -> None:
        """Let keys and values take so many bytes from now on: cached prefixes above their share of it go."""
        ...

    def cache_stats(self) -> CacheStats:
        """What the prefix cache holds and what it was good for; `enabled` false for an engine without one."""
        ...

    def clear_cache(self, tier: CacheTier) -> None:
        """Empty a tier of the prefix cache, or all. What running sequences use stays theirs."""
        ...

    def held_prefixes(self) -> HeldPrefixes | None:
        """What batching may route by; None for an engine that keeps no prefixes. Called after every step."""
        ...

    def rest(self) -> None:
        """Give memory back that only a next sequence would use. Called once nothing has run for a while."""
        ...

    def close(self) -> None:
        """Give every byte back."""
        ...
