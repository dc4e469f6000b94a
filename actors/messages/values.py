"""Values that several messages carry."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from typing import Literal

import attrs

Priority = Literal["low", "normal", "high"]
PRIORITIES: tuple[Priority, ...] = ("low", "normal", "high")

FinishReason = Literal["stop", "length"]


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
class ChatMessage:
    """One turn of a conversation, in the terms of the chat template."""

    role: str
    content: str
    name: str | None = None


@attrs.frozen
class TokenLogprob:
    """Log-probability (nat) of `token_id` under the model, before temperature and filters."""

    token_id: int
    token: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


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


@attrs.frozen
class Usage:
    """Token counts of a whole request; the prompt counts once however many choices were asked for."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@attrs.frozen
class Timings:
    """Seconds: waiting for a slot, prefill, until the first token left admission, decode, everything."""

    queue: float
    prefill: float
    first_token: float
    decode: float
    total: float


@attrs.frozen
class ModelInfo:
    """What a loaded model is. `kv_bytes_per_token` predicts the cache; `path` is its folder on this machine."""

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
