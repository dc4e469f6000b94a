"""What the runtime answers, as the results that hosts expect. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import attrs

from mlx_serving.actors.messages.frontend import (
    CacheReported,
    CacheWarmed,
    ModelsListed,
    RequestFinished,
    ServedModel,
    StatusReported,
    Tokenized,
)
from mlx_serving.actors.messages.values import unpack_ids
from mlx_serving.frontends.stdio.chunks import Token

_COUNTER = re.compile(r"^([A-Za-z_:][A-Za-z0-9_:]*_total)(?:\{.*\})? (\S+)", re.MULTILINE)


def loaded(model_id: str, served: ServedModel) -> dict[str, Any]:
    """The result of `load_model`."""
    info = served.info
    return {
        "model_id": model_id,
        "state": "ready",
        "context_length": info.context_length,
        "parameter_count": info.parameter_count,
        "dtype": info.dtype,
        "is_vision_model": info.is_vision,
        "cached_path": info.path,
    }


def state(status: StatusReported, host_name: Callable[[str], str]) -> dict[str, Any]:
    """The result of `runtime/state`; `host_name` gives the id under which the host loaded a model."""
    return {
        "loaded_models": [
            {"model_id": host_name(model.info.name), "state": "ready", "type": _type(model)}
            for model in status.models
            if model.state == "ready"
        ],
        "active_streams": status.active_streams,
        "restart_count": status.restarts,
    }


def telemetry(text: str) -> dict[str, Any]:
    """The result of `runtime/telemetry`: every counter of the Prometheus `text`, summed over its labels."""
    counters: dict[str, float] = {}
    for name, value in _COUNTER.findall(text):
        counters[name] = counters.get(name, 0.0) + float(value)
    return {"enabled": True, **counters}


def models(listed: ModelsListed) -> dict[str, Any]:
    """The result of `list_models`."""
    return {"models": [_model(model) for model in listed.models], "stored": list(listed.stored)}


def health(status: StatusReported) -> dict[str, Any]:
    """The result of `health`. Times in seconds."""
    return {
        "status": "draining" if status.draining else ("ok" if status.ready else "not_ready"),
        "ready": status.ready,
        "reason": status.reason,
        "version": status.version,
        "uptime": status.uptime,
        "active_streams": status.active_streams,
        "waiting": status.queue.waiting,
        "models": [{"model_id": model.info.name, "state": model.state} for model in status.models],
    }


def tokenized(answer: Tokenized) -> dict[str, Any]:
    """The result of `tokenize`."""
    return {"tokens": unpack_ids(answer.token_ids), "token_strings": list(answer.token_strings)}


def caches(answer: CacheReported) -> dict[str, Any]:
    """The result of `cache_stats` and `cache_clear`: what each replica's prefix cache holds, in bytes and tokens."""
    return {
        "replicas": [
            {"replica": each.replica, "model_id": each.model, **attrs.asdict(each.stats)} for each in answer.replicas
        ]
    }


def warmed(answer: CacheWarmed) -> dict[str, Any]:
    """The result of `cache_warm`. Times in seconds."""
    return {"prompts": [attrs.asdict(prompt) for prompt in answer.prompts]}


def stats(finished: RequestFinished) -> dict[str, Any]:
    """Tokens and times (seconds) of a finished request, as in `stream.stats`."""
    tokens, timings = finished.usage.completion_tokens, finished.timings
    return {
        "tokens_generated": tokens,
        "tokens_per_second": tokens / timings.decode if timings.decode > 0 else 0.0,
        "time_to_first_token": timings.first_token,
        "total_time": timings.total,
        "cached_tokens": finished.usage.cached_tokens,
    }


def completion(
    started: dict[str, Any],
    told: list[Token],
    token_ids: Iterable[int],
    reason: str | None,
    finished: RequestFinished,
) -> dict[str, Any]:
    """The result of a `generate` or `chat` that was followed by `$/progress`."""
    usage = finished.usage
    return {
        **started,
        **spoken(told),
        "token_ids": list(token_ids),
        "finish_reason": reason,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cached_tokens": usage.cached_tokens,
            "reasoning_tokens": usage.reasoning_tokens,
            "accepted_draft_tokens": usage.drafts.accepted,
            "rejected_draft_tokens": usage.drafts.rejected,
            "accepted_prediction_tokens": usage.drafts.accepted_prediction,
            "rejected_prediction_tokens": usage.drafts.rejected_prediction,
        },
        "stats": stats(finished),
    }


def spoken(told: list[Token]) -> dict[str, Any]:
    """All text of a stream; its reasoning and its calls if there are any."""
    said: dict[str, Any] = {"text": "".join(token["token"] for token in told)}
    if reasoning := "".join(token.get("reasoning_content", "") for token in told):
        said["reasoning_content"] = reasoning
    if calls := _calls(told):
        said["tool_calls"] = calls
    return said


def _calls(told: list[Token]) -> list[dict[str, Any]]:
    calls: dict[int, dict[str, Any]] = {}
    for part in (each for token in told for each in token.get("tool_calls", ())):
        function = part["function"]
        if "name" in function:
            calls[part["index"]] = {"id": part["id"], "type": "function", "function": {**function}}
        else:
            calls[part["index"]]["function"]["arguments"] += function["arguments"]
    return [calls[index] for index in sorted(calls)]


def _model(model: ServedModel) -> dict[str, Any]:
    info = model.info
    return {
        "model_id": info.name,
        "state": model.state,
        "type": _type(model),
        "is_default": model.is_default,
        "architecture": info.architecture,
        "context_length": info.context_length,
        "parameter_count": info.parameter_count,
        "dtype": info.dtype,
        "quantization_bits": info.quantization_bits,
        "loaded_at": model.loaded_at,
        "memory_bytes": model.memory_bytes,
        "last_used": model.last_used,
        "pinned": model.pinned,
        "adapters": list(model.adapters),
    }


def _type(model: ServedModel) -> str:
    return "vision" if model.info.is_vision else "text"
