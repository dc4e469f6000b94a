"""What frontends are told by admission."""

from __future__ import annotations

import attrs

from mlx_serving.actors.errors import ErrorInfo
from mlx_serving.actors.messages.admission import ActorState, QueueObserved
from mlx_serving.actors.messages.hot import hot
from mlx_serving.actors.messages.values import (
    AdapterInfo,
    CacheStats,
    ModelInfo,
    SequenceEnd,
    Timings,
    TokenLogprob,
    ToolCallPart,
    Usage,
)


@attrs.frozen
class AdmissionAlive:
    """Admission is there. Another `incarnation` than before means that it was restarted and every stream is gone."""

    incarnation: str
    protocol: int


@attrs.frozen
class RequestAccepted:
    """The request is queued."""

    request_id: int
    model: str
    prompt_tokens: int


@hot
class Delta:
    """New text and tokens of one choice, reasoning and tool calls apart from the text; `end` on its last one."""

    request_id: int
    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    end: SequenceEnd | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCallPart, ...] = ()


@hot
class TokensDelivered:
    """One step's deltas of all streams of one frontend, in one frame (hot)."""

    deltas: tuple[Delta, ...]


@attrs.frozen
class RequestFinished:
    """Every choice has ended."""

    request_id: int
    usage: Usage
    timings: Timings


@attrs.frozen
class RequestFailed:
    """The request ended with an error; it is the last message of its stream."""

    request_id: int
    error: ErrorInfo


@attrs.frozen
class Refused:
    """The answer to a question that could not be answered."""

    error: ErrorInfo


@attrs.frozen
class Done:
    """The answer to a command that was carried out."""


@attrs.frozen
class Tokenized:
    """Packed token ids, their strings, and the model's context length."""

    model: str
    token_ids: bytes
    token_strings: tuple[str, ...]
    context_length: int


@attrs.frozen
class Detokenized:
    """The text of token ids."""

    model: str
    text: str


@attrs.frozen
class ServedModel:
    """A model and how it stands. `state`: ready, loading, unloading, failed, stored.

    `memory_bytes` is what it is counted with, weights and the least cache; `last_used` is seconds since the epoch, 0
    for never. `adapters` are the names of the LoRA adapters that requests may choose with it.
    """

    info: ModelInfo
    state: str
    is_default: bool
    replicas: int
    loaded_at: float
    """Seconds since the epoch."""
    memory_bytes: int = 0
    last_used: float = 0.0
    pinned: bool = False
    adapters: tuple[str, ...] = ()


@attrs.frozen
class ModelsListed:
    """Models that have a replica, and names of stored models that have none.

    `available` are those of the stored ones that a request would load, in state stored.
    """

    models: tuple[ServedModel, ...]
    stored: tuple[str, ...]
    available: tuple[ServedModel, ...] = ()


@attrs.frozen
class DamagedAdapter:
    """A LoRA adapter that cannot be used, as `base:name`, and why."""

    adapter: str
    reason: str


@attrs.frozen
class AdaptersListed:
    """LoRA adapters, by base and name."""

    adapters: tuple[AdapterInfo, ...]
    damaged: tuple[DamagedAdapter, ...] = ()


@attrs.frozen
class ModelLoaded:
    """The model serves."""

    model: ServedModel


@attrs.frozen
class ReplicaCache:
    """The prefix cache of one replica."""

    replica: str
    model: str
    stats: CacheStats


@attrs.frozen
class CacheReported:
    """The prefix caches that were asked about."""

    replicas: tuple[ReplicaCache, ...]


@attrs.frozen
class WarmedPrompt:
    """A warm prompt that a replica's cache holds now; `cached_tokens` of its `tokens` were there before. Seconds."""

    name: str
    model: str
    replica: str
    tokens: int
    cached_tokens: int
    seconds: float


@attrs.frozen
class CacheWarmed:
    """The warm prompts that were asked for."""

    prompts: tuple[WarmedPrompt, ...]


@attrs.frozen
class StatusReported:
    """The state of the whole runtime. Memory in bytes, times in seconds."""

    version: str
    ready: bool
    reason: str
    draining: bool
    uptime: float
    actors: tuple[ActorState, ...]
    models: tuple[ServedModel, ...]
    queue: QueueObserved
    active_streams: int
    shedding: tuple[str, ...]
    memory_rss: int
    restarts: int
    addresses: tuple[str, ...] = ()


@attrs.frozen
class MetricsReported:
    """Prometheus text format 0.0.4."""

    text: str
