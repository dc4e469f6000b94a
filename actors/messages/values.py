"""Values that several messages carry."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from typing import Literal

import attrs

Priority = Literal["low", "normal", "high"]
PRIORITIES: tuple[Priority, ...] = ("low", "normal", "high")

FinishReason = Literal["stop", "length", "tool_calls"]
ToolMode = Literal["auto", "none", "required", "named"]
GuidanceKind = Literal["json_schema", "json_object", "regex", "choice", "grammar", "calls"]

CacheTier = Literal["memory", "disk", "all"]
CACHE_TIERS: tuple[CacheTier, ...] = ("memory", "disk", "all")


def pack_ids(ids: Iterable[int]) -> bytes:
    """Token ids as little-endian uint32: 100,000 of them cross the bus as one byte string."""
    packed = array("I", ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_ids(packed: bytes) -> list[int]:
    """The inverse of `pack_ids`."""
    ids = array("I")
    ids.frombytes(packed)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tolist()


@attrs.frozen
class Sampling:
    """How one token is drawn. `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 switch those filters off.

    Filters apply in the order bias, penalties, temperature, top-k, top-p, min-p. `seed` makes the draw a function of
    (seed, choice, position), whatever else is in the batch. Penalties count prompt and answer for `repetition`, the
    answer alone for `presence` and `frequency`. `logit_bias` maps token id to an addend in [-100, 100].
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = attrs.field(factory=dict)
    logprobs: bool = False
    top_logprobs: int = 0


@attrs.frozen
class Stopping:
    """When an answer ends: at `max_tokens`, at a stop string (cut before it), at a stop token, at end of sequence."""

    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False


@attrs.frozen
class ToolCall:
    """A call that an assistant's turn made. `arguments` is the JSON text of an object."""

    name: str
    arguments: str
    id: str = ""


@attrs.frozen
class ChatMessage:
    """One turn of a conversation. `tool_call_id` on a tool's answer; `reasoning` and `tool_calls` on an assistant's."""

    role: str
    content: str
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str | None = None


@attrs.frozen
class Tool:
    """A function that the model may call. `parameters` is the JSON text of its JSON Schema, an object's.

    With `strict`, a keyword of the schema that cannot be enforced is an error; without, it is left out of the mask.
    """

    name: str
    parameters: str
    description: str | None = None
    strict: bool = False


@attrs.frozen
class ToolUse:
    """The tools of a request and which of them must be called. `name` is that of mode `named`."""

    tools: tuple[Tool, ...] = ()
    mode: ToolMode = "auto"
    name: str = ""
    parallel: bool = True


@attrs.frozen
class ToolCallPart:
    """A piece of the answer's tool call number `index`: `id` and `name` with its first piece, then JSON text."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@attrs.frozen
class Guidance:
    """What an answer is held to, token by token.

    `source` is a JSON Schema, nothing for `json_object`, a regular expression, a JSON list of strings for `choice`, or
    a grammar (Lark or GBNF); `calls` is a grammar (Lark) of our own, of tool calls. `field` is the parameter it came
    from, as errors name it.
    """

    kind: GuidanceKind
    source: str = ""
    field: str = "guidance"


@attrs.frozen
class AnswerFormat:
    """How a model's output is taken apart, and what is forced upon it besides `guidance`.

    `reasoning` and `calls` name parsers of `actors/parsing`, "" for none. `is_thinking`: the prompt ends
    inside a span of reasoning. Guidance begins where the answer does, after the reasoning; if `lazy`, wherever the
    answer opens a call, and ends with it. `parallel`: there may be several calls. `thinking_budget`: tokens of
    reasoning after which its end is forced.
    """

    reasoning: str = ""
    calls: str = ""
    is_thinking: bool = False
    tools: tuple[Tool, ...] = ()
    parallel: bool = True
    lazy: bool = False
    thinking_budget: int | None = None


@attrs.frozen
class TokenLogprob:
    """Log-probability (nat) of `token_id` under the model, before temperature and filters."""

    token_id: int
    token: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@attrs.frozen
class DraftCounts:
    """Tokens that speculation proposed: those the model then said itself, and those it did not.

    The last two count the ones that came out of the request's `prediction`.
    """

    accepted: int = 0
    rejected: int = 0
    accepted_prediction: int = 0
    rejected_prediction: int = 0


def total_drafts(counts: Iterable[DraftCounts]) -> DraftCounts:
    """The sum of all."""
    columns = zip(*map(attrs.astuple, counts), strict=True)
    return DraftCounts(*map(sum, columns))


@attrs.frozen
class SequenceEnd:
    """Why and with what one sequence ended. Times in seconds; `matched` is the stop string or stop token id."""

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    matched: str | int | None = None
    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    reasoning_tokens: int = 0
    drafts: DraftCounts = DraftCounts()


@attrs.frozen
class Usage:
    """Token counts of a whole request.

    The prompt counts once however many choices were asked for, and as cached only what every choice found.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    drafts: DraftCounts = DraftCounts()


@attrs.frozen
class Timings:
    """Seconds: waiting for a slot, prefill, until the first token left admission, decode, everything."""

    queue: float
    prefill: float
    first_token: float
    decode: float
    total: float


@attrs.frozen
class AdapterInfo:
    """A LoRA adapter of the model `base`, in the form of `mlx-lm` or `peft`. `fingerprint` names its contents."""

    name: str
    base: str
    form: str
    rank: int
    layers: int
    bytes: int
    fingerprint: str
    source: str


@attrs.frozen
class ModelInfo:
    """What a loaded model is. `kv_bytes_per_token` predicts the cache; `path` is its folder on this machine;
    `kernels` says what computes it: `mlx`, or `native` and the instruction set of our own kernels.

    `capacities` are what rows are given room for, in tokens, ascending: each the least that is enough. Where there is
    none, for as many as they have.

    A cache that is not `is_trimmable` cannot be cut back: its prefixes are checkpointed where a message ends.
    """

    name: str
    path: str
    architecture: str
    parameter_count: int
    dtype: str
    context_length: int
    vocab_size: int
    kv_bytes_per_token: int
    quantization_bits: int | None = None
    is_vision: bool = False
    fingerprint: str = ""
    is_trimmable: bool = True
    kernels: str = ""
    capacities: tuple[int, ...] = ()

    def cache_bytes(self, tokens: int) -> int:
        """Room for a row that grows to so many tokens."""
        room = next((capacity for capacity in self.capacities if capacity >= tokens), tokens)
        return room * self.kv_bytes_per_token


@attrs.frozen
class CacheStats:
    """A replica's prefix cache: what it holds now, and what it was good for since the replica started. Bytes.

    `lookups` prompts of `lookup_tokens` tokens were looked up; `hits` of them found a prefix here, of `hit_tokens`
    tokens together, `disk_hit_tokens` of which came from disk. `evicted` entries made room for others; `dropped`
    ones on disk were broken. An engine without a cache reports `enabled` false and zeros.
    """

    enabled: bool
    entries: int = 0
    tokens: int = 0
    bytes: int = 0
    limit_bytes: int = 0
    disk_entries: int = 0
    disk_tokens: int = 0
    disk_bytes: int = 0
    disk_limit_bytes: int = 0
    lookups: int = 0
    lookup_tokens: int = 0
    hits: int = 0
    hit_tokens: int = 0
    disk_hit_tokens: int = 0
    evicted: int = 0
    dropped: int = 0
