"""What a replica is told by batching. `SequencePaused`, `SequenceResumed`, `SequenceAborted` arrive here too, and from
admission `CacheStatsRequested` and `CacheClearRequested`."""

from __future__ import annotations

import attrs

from mlx_serving.actors.messages.batching import SequenceQueued


@attrs.frozen
class SequenceAssigned:
    """Generate this sequence. `assigned_at` is monotonic seconds."""

    sequence: SequenceQueued
    assigned_at: float


@attrs.frozen
class CacheGranted:
    """Keys and values of rows and prefixes may take so many bytes from now on."""

    kv_bytes: int


@attrs.frozen
class SequencesDropped:
    """Forget every sequence: whoever had asked for them is gone."""
