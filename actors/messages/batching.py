"""What batching is told. `ReplicaUp`, `ReplicaDown` and `DrainStarted` (messages/admission.py) arrive here too."""

from __future__ import annotations

import attrs

from mlx_serving.actors.messages.values import AnswerFormat, Guidance, Priority, Sampling, Stopping


@attrs.frozen
class SequenceQueued:
    """One sequence that wants a place in a batch.

    `prompt_ids` are packed uint32. `kv_bytes` is the most its cache can grow to. `queued_at` and `deadline` are
    monotonic seconds. `index` is the choice within its request: it enters the seed. Sequences share cached prefixes
    only under the same `cache_salt`. `segments` are offsets in the prompt, ascending, where a message ends. `replica`
    names the only one that may run it. `stopping.max_tokens` 0 prefills the prompt into the cache and says nothing.
    Much of the answer may repeat `prediction_ids` (packed); `speculation` False decodes token by token. `adapter` is
    the name and the contents of a LoRA adapter for the model (`NAME@FINGERPRINT`), empty for none.
    """

    sequence_id: int
    model: str
    prompt_ids: bytes
    sampling: Sampling
    stopping: Stopping
    kv_bytes: int
    queued_at: float
    index: int = 0
    priority: Priority = "normal"
    tenant: str = ""
    deadline: float | None = None
    window: int = 512
    cache_salt: str = ""
    segments: tuple[int, ...] = ()
    replica: str | None = None
    format: AnswerFormat | None = None
    prediction_ids: bytes = b""
    speculation: bool = True
    adapter: str = ""
    guidance: Guidance | None = None


@attrs.frozen
class CacheShared:
    """How models share the memory for caches from now on: bytes for each replica of a model, by its name.

    They are for rows and cached prefixes together.
    """

    kv_bytes: dict[str, int]


@attrs.frozen
class SequenceAborted:
    """Admission no longer wants the sequence: take it out of the queue, or off its replica within one step."""

    sequence_id: int


@attrs.frozen
class SequencePaused:
    """The consumer has no credit left: keep the sequence's cache, free its row."""

    sequence_id: int


@attrs.frozen
class SequenceResumed:
    """The consumer reads again."""

    sequence_id: int


@attrs.frozen
class SequencesEnded:
    """A replica reports sequences that no longer hold a slot or a cache."""

    replica: str
    sequence_ids: tuple[int, ...]


@attrs.frozen
class PrefixesHeld:
    """A replica tells which prompt prefixes its cache holds, by their digests (`actors/prefix_digests.py`).

    `added` and `dropped` are packed little-endian uint64 (`pack_digests`). With `is_whole`, what was told before is
    void. `namespace` is what the replica's digests begin from.
    """

    replica: str
    namespace: bytes
    added: bytes
    dropped: bytes = b""
    is_whole: bool = False
