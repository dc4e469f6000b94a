"""The parameters of every method, and the messages that the runtime is asked with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_serving.actors.messages.admission import (
    DetokenizeRequested,
    GenerationRequested,
    TokenizeRequested,
)
from mlx_serving.actors.messages.values import CACHE_TIERS, PRIORITIES, Sampling, Stopping, pack_ids
from mlx_serving.frontends.stdio.guidance import guidance
from mlx_serving.frontends.stdio.parameters import (
    Parameter,
    anything,
    choice,
    flag,
    many,
    real,
    stream_id,
    string,
    token,
    unsupported,
    whole,
)
from mlx_serving.frontends.stdio.tools import MESSAGES, TOOLS, object_text, tool_use

MOST_IN_BATCH = 100
"""Requests in one batch: as many as may be pending one by one."""
_LARGEST_TOKEN_ID = 2**32 - 1
_LONGEST_NAME = 1024

_MODEL = Parameter("model_id", string(1, _LONGEST_NAME), required=True)
_TOKEN_ID = whole(0, _LARGEST_TOKEN_ID)

_SAMPLING = (
    Parameter("temperature", real(0, 2)),
    Parameter("top_p", real(0, 1, above=True)),
    Parameter("top_k", whole(0, _LARGEST_TOKEN_ID)),
    Parameter("min_p", real(0, 1)),
    Parameter("seed", whole(0, 2**63 - 1)),
    Parameter("presence_penalty", real(-2, 2)),
    Parameter("frequency_penalty", real(-2, 2)),
    Parameter("repetition_penalty", real(0.01, 10)),
    Parameter("logprobs", flag),
)
_STOPPING = (
    Parameter("max_tokens", whole(1, 2**31 - 1)),
    Parameter("stop_sequences", many(string(1), longest=16)),
    Parameter("stop_token_ids", many(_TOKEN_ID, longest=256)),
    Parameter("ignore_eos", flag),
)
_SPECULATION = (Parameter("prediction", string()), Parameter("speculation", flag))
_DELIVERY = (
    Parameter("stream_id", stream_id),
    Parameter("streaming", flag),
    Parameter("priority", choice(*PRIORITIES)),
    Parameter("timeout", real(0, 86_400, above=True)),
    Parameter("cache_salt", string(1, 512)),
    Parameter("guidance", guidance),
    Parameter("draft_model", unsupported()),
)
PROGRESS = ("partialResultToken", "progressToken")
"""Names of the token by which an editor asks to be told by `$/progress`."""
_PROGRESS = tuple(Parameter(name, token) for name in PROGRESS)

_REASONING = (
    Parameter("reasoning_effort", choice("none", "minimal", "low", "medium", "high", "xhigh")),
    Parameter("thinking_budget", whole(0, 2**31 - 1)),
    Parameter("chat_template_kwargs", object_text),
)

NONE: tuple[Parameter, ...] = ()
MODEL = (_MODEL,)
LOAD = (
    _MODEL,
    Parameter("local_path", string(1, 4096)),
    Parameter("revision", unsupported("main")),
    Parameter("quantization", unsupported("none")),
    Parameter("context_length", unsupported()),
    Parameter("draft", unsupported(False)),
    Parameter("tokenizer_config", unsupported({})),
    Parameter("load_kwargs", unsupported({})),
    Parameter("trust_remote_code", unsupported(False)),
)
PROMPT = (_MODEL, Parameter("prompt", string(1), required=True), *_SAMPLING, *_STOPPING, *_SPECULATION, *_DELIVERY)
GENERATE = (*PROMPT, *_PROGRESS)
CHAT = (
    _MODEL,
    Parameter("messages", MESSAGES, required=True),
    *_SAMPLING,
    *_STOPPING,
    *_SPECULATION,
    *_DELIVERY,
    *TOOLS,
    *_REASONING,
    *_PROGRESS,
)
TOKENIZE = (_MODEL, Parameter("text", string(), required=True), Parameter("add_special_tokens", flag))
DETOKENIZE = (_MODEL, Parameter("tokens", many(_TOKEN_ID), required=True))
_LOADED = Parameter("model_id", string(1, _LONGEST_NAME))
CACHE_STATS = (_LOADED,)
CACHE_CLEAR = (_LOADED, Parameter("tier", choice(*CACHE_TIERS)))
CACHE_WARM = (_LOADED, Parameter("prompt", string(1, 64)))
CANCEL = (Parameter("stream_id", stream_id, required=True),)
BATCH = (Parameter("requests", many(anything, shortest=1, longest=MOST_IN_BATCH), required=True),)

_STOPPING_NAMES = {
    "max_tokens": "max_tokens",
    "stop_sequences": "stop",
    "stop_token_ids": "stop_token_ids",
    "ignore_eos": "ignore_eos",
}


def generation(values: Mapping[str, Any], model: str, window: int) -> GenerationRequested:
    """The request of checked `generate` or `chat` parameters; the rest stays the runtime's default."""
    sampling = {each.name: values[each.name] for each in _SAMPLING if each.name in values}
    stopping = {ours: values[name] for name, ours in _STOPPING_NAMES.items() if name in values}
    content: dict[str, Any] = {"prompt": values.get("prompt")}
    if "messages" in values:
        content = {
            "messages": values["messages"],
            "tool_use": tool_use(values),
            "template_arguments": values.get("chat_template_kwargs", "{}"),
            "reasoning_effort": values.get("reasoning_effort"),
            "thinking_budget": values.get("thinking_budget"),
        }
    return GenerationRequested(
        request_id=0,
        model=model,
        sampling=Sampling(**sampling),
        stopping=Stopping(**stopping),
        priority=values.get("priority", "normal"),
        timeout=values.get("timeout"),
        cache_salt=values.get("cache_salt", ""),
        window=window,
        prediction=values.get("prediction"),
        speculation=values.get("speculation", True),
        guidance=values.get("guidance"),
        **content,
    )


def tokenization(values: Mapping[str, Any], model: str) -> TokenizeRequested:
    """The question of checked `tokenize` parameters."""
    special = values.get("add_special_tokens", True)
    return TokenizeRequested(model=model, text=values["text"], add_special_tokens=special)


def detokenization(values: Mapping[str, Any], model: str) -> DetokenizeRequested:
    """The question of checked `detokenize` parameters."""
    return DetokenizeRequested(token_ids=pack_ids(values["tokens"]), model=model)


def progress_token(values: Mapping[str, Any]) -> str | int | float | None:
    """The token by which the host wants progress; None if it did not ask for any."""
    return next((values[name] for name in PROGRESS if name in values), None)
