"""What admission is asked (by frontends) and told (by the other actors)."""

from __future__ import annotations

import attrs

from mlx_serving.actors.errors import ErrorInfo
from mlx_serving.actors.messages.hot import hot
from mlx_serving.actors.messages.values import (
    CacheStats,
    CacheTier,
    ChatMessage,
    Guidance,
    ModelInfo,
    Priority,
    Sampling,
    SequenceEnd,
    Stopping,
    TokenLogprob,
    ToolCallPart,
    ToolUse,
)

# --- from frontends -------------------------------------------------------------------------------------------------


@attrs.frozen
class FrontendAttached:
    """A frontend says it is there, at the start and every `keepalive` seconds; one that stops is taken for gone.

    Answered with `AdmissionAlive`.
    """

    name: str


@attrs.frozen
class GenerationRequested:
    """Generate `n` answers to one prompt. Exactly one of `messages`, `prompt` and `prompt_ids` is given.

    `request_id` is the frontend's own number, unique on its connection. `prompt_ids` are packed uint32 (`pack_ids`).
    `model` None is the default model. `window` is the stream's initial credit in tokens per choice: a consumer that
    does not return credits (`CreditsReturned`) pauses its own sequences and nobody else's. `timeout` in seconds
    bounds the whole request. Cached prefixes are shared only between requests of the same `cache_salt`. Answered with
    `RequestAccepted`, any number of `TokensDelivered`, and exactly one of `RequestFinished` and `RequestFailed`.

    `template_arguments` is the JSON text of an object, variables for the chat template; `reasoning_effort` is one more.
    `thinking_budget` bounds the tokens of reasoning. `prediction` is text that much of the answer may repeat;
    `speculation` False decodes token by token: both change how fast the answer comes, and nothing else. `guidance` is
    what the answer is held to.
    """

    request_id: int
    model: str | None = None
    messages: tuple[ChatMessage, ...] | None = None
    prompt: str | None = None
    prompt_ids: bytes | None = None
    add_special_tokens: bool = True
    n: int = 1
    sampling: Sampling = attrs.field(factory=Sampling)
    stopping: Stopping = attrs.field(factory=Stopping)
    priority: Priority = "normal"
    tenant: str = ""
    timeout: float | None = None
    window: int = 512
    cache_salt: str = ""
    tool_use: ToolUse = attrs.field(factory=ToolUse)
    template_arguments: str = "{}"
    reasoning_effort: str | None = None
    thinking_budget: int | None = None
    prediction: str | None = None
    speculation: bool = True
    guidance: Guidance | None = None


@attrs.frozen
class RequestCancelled:
    """The consumer is gone or does not want the rest. No further message of the request follows."""

    request_id: int


@attrs.frozen
class CreditsReturned:
    """The consumer has taken `tokens` tokens of choice `index`."""

    request_id: int
    index: int
    tokens: int


@attrs.frozen
class TokenizeRequested:
    """Token ids of `text`, or of `messages` through the chat template. Answered with `Tokenized`."""

    model: str | None = None
    text: str | None = None
    messages: tuple[ChatMessage, ...] | None = None
    add_special_tokens: bool = True


@attrs.frozen
class DetokenizeRequested:
    """Text of packed token ids. Answered with `Detokenized`."""

    token_ids: bytes
    model: str | None = None


@attrs.frozen
class ModelsRequested:
    """Which models are served, and which could be. Answered with `ModelsListed`."""


@attrs.frozen
class ModelLoadRequested:
    """Start a replica of a stored model (name, alias or trusted folder). Answered with `ModelLoaded`."""

    model: str


@attrs.frozen
class ModelUnloadRequested:
    """Stop a model's replicas once its streams have ended. Answered with `Done`."""

    model: str


@attrs.frozen
class CacheStatsRequested:
    """What the prefix caches of a model's replicas hold (None: of all). Answered with `CacheReported`."""

    model: str | None = None


@attrs.frozen
class CacheClearRequested:
    """Empty one tier, or all, of the prefix caches of a model's replicas (None: of all).

    What running sequences use stays theirs. Answered with `CacheReported`: what is held afterwards.
    """

    tier: CacheTier = "all"
    model: str | None = None


@attrs.frozen
class CacheWarmRequested:
    """Prefill the warm prompt of the settings that `prompt` names (None: each) on every replica that it is for.

    Answered with `CacheWarmed`.
    """

    prompt: str | None = None
    model: str | None = None


@attrs.frozen
class ModelPinRequested:
    """Keep a model loaded whatever else wants its memory, or (`pinned` False) no longer. Answered with `Done`."""

    model: str
    pinned: bool


@attrs.frozen
class AdaptersRequested:
    """Which LoRA adapters there are. Answered with `AdaptersListed`."""


@attrs.frozen
class AdapterAddRequested:
    """Take the adapter in `folder` (within a trusted one) into the store, as `base:name`.

    Answered with `AdaptersListed`, of this one.
    """

    folder: str
    base: str
    name: str


@attrs.frozen
class AdapterRemoveRequested:
    """Remove the adapter `adapter` (`base:name`) from the store. Answered with `Done`."""

    adapter: str


@attrs.frozen
class StatusRequested:
    """The state of the whole runtime. Answered with `StatusReported`."""


@attrs.frozen
class MetricsRequested:
    """Prometheus text of every metric. Answered with `MetricsReported`."""


@attrs.frozen
class ShutdownRequested:
    """Drain and stop the runtime. Answered with `Done` before it begins."""


# --- from generation (hot: one frame per step) ----------------------------------------------------------------------


@hot
class SequenceOutput:
    """What one step gave one sequence: new text (may be empty), its token ids, and how it ended, if it did.

    `reasoning` and `tool_calls` are what the model wrote apart from the text. Exactly one of `end` and `error` is set
    on the last output of a sequence.
    """

    sequence_id: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    end: SequenceEnd | None = None
    error: ErrorInfo | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCallPart, ...] = ()


@hot
class TokensGenerated:
    """The outputs of all of a replica's streams for one step, in one frame."""

    replica: str
    outputs: tuple[SequenceOutput, ...]


@attrs.frozen
class CacheObserved:
    """A replica's answer to `CacheStatsRequested` and `CacheClearRequested`, which admission passes on to it."""

    replica: str
    stats: CacheStats


# --- from batching, supervisor, qos, telemetry ----------------------------------------------------------------------


@attrs.frozen
class SequencesLost:
    """The replica that held these sequences is gone (`replica`). Those without a token yet may be queued again."""

    replica: str
    sequence_ids: tuple[int, ...]
    reason: str


@attrs.frozen
class QueueObserved:
    """Batching's load. Ages in seconds."""

    waiting: int
    running: int
    paused: int
    oldest_wait: float
    reserved_kv_bytes: int


@attrs.frozen
class ReplicaUp:
    """A replica serves. `kv_bytes` is its budget for cached tokens.

    `weight_bytes` is what its weights take, of the `memory_bytes` that all models on its device share.
    """

    replica: str
    model: ModelInfo
    address: str
    slots: int
    kv_bytes: int
    pid: int
    is_default: bool = False
    weight_bytes: int = 0
    memory_bytes: int = 0


@attrs.frozen
class ReplicaDown:
    """A replica ended or will not start; `restarting` says whether another one is on its way."""

    replica: str
    model: str
    reason: str
    restarting: bool
    error: ErrorInfo | None = None


@attrs.frozen
class ActorState:
    """One line of the supervisor's table. `state`: starting, ready, failed, stopped."""

    name: str
    state: str
    placement: str
    pid: int
    restarts: int
    uptime: float
    detail: str = ""


@attrs.frozen
class SystemObserved:
    """The supervisor's table, sent at every change."""

    actors: tuple[ActorState, ...]
    draining: bool = False


@attrs.frozen
class ClassesShed:
    """QoS asks admission to refuse new requests of these priority classes (empty: none)."""

    priorities: tuple[Priority, ...]
    reason: str
    retry_after: float = 1.0


@attrs.frozen
class DrainStarted:
    """Stop intake; `seconds` are left for what runs."""

    seconds: float
