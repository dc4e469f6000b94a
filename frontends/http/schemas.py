"""JSON Schemas of the responses, by name."""

from __future__ import annotations

from typing import Any

import attrs

from mlx_serving.actors.messages.values import CacheStats
from mlx_serving.frontends.http.kinds import Schema

_STRING: Schema = {"type": "string"}
_INTEGER: Schema = {"type": "integer"}
_NUMBER: Schema = {"type": "number"}
_BOOLEAN: Schema = {"type": "boolean"}
_MAYBE_STRING: Schema = {"type": ["string", "null"]}


def _object(**properties: Any) -> Schema:
    """An object with all of these members; more may come with later versions."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def _optional(schema: Schema, **properties: Any) -> Schema:
    return {**schema, "properties": {**schema["properties"], **properties}}


def _list(item: Schema) -> Schema:
    return {"type": "array", "items": item}


def _either(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


_USAGE = _object(
    prompt_tokens=_INTEGER,
    completion_tokens=_INTEGER,
    total_tokens=_INTEGER,
    prompt_tokens_details=_object(cached_tokens=_INTEGER),
    completion_tokens_details=_object(
        reasoning_tokens=_INTEGER,
        accepted_prediction_tokens=_INTEGER,
        rejected_prediction_tokens=_INTEGER,
        accepted_draft_tokens=_INTEGER,
        rejected_draft_tokens=_INTEGER,
    ),
)
_TIMINGS = _object(
    queue_seconds=_NUMBER,
    prefill_seconds=_NUMBER,
    first_token_seconds=_NUMBER,
    decode_seconds=_NUMBER,
    total_seconds=_NUMBER,
)
_TOKEN = _object(token=_STRING, logprob=_NUMBER, bytes=_either(_list(_INTEGER)))
_CHAT_LOGPROBS = _object(content=_list(_optional(_TOKEN, top_logprobs=_list(_TOKEN))))
_LOGPROBS = _object(
    tokens=_list(_STRING),
    token_logprobs=_list(_NUMBER),
    top_logprobs=_list({"type": "object", "additionalProperties": _NUMBER}),
    text_offset=_list(_INTEGER),
)
_ENDING: dict[str, Schema] = {
    "finish_reason": {"enum": ["stop", "length", "tool_calls"]},
    "stop_reason": {"type": ["string", "integer", "null"]},
}


def _answer(kind: str, choice: Schema) -> Schema:
    return _object(
        id=_STRING,
        object={"const": kind},
        created=_INTEGER,
        model=_STRING,
        system_fingerprint=_STRING,
        choices=_list(choice),
        usage=_USAGE,
        timings=_TIMINGS,
    )


_ADAPTER = _object(
    id=_STRING,
    object={"const": "adapter"},
    base=_STRING,
    name=_STRING,
    form={"enum": ["mlx-lm", "peft"]},
    rank=_INTEGER,
    layers=_INTEGER,
    bytes=_INTEGER,
    fingerprint=_STRING,
    source=_STRING,
)

_MODEL = _object(
    id=_STRING,
    object={"const": "model"},
    created=_INTEGER,
    owned_by=_STRING,
    state={"enum": ["ready", "loading", "unloading", "failed", "stored"]},
    is_default=_BOOLEAN,
    replicas=_INTEGER,
    context_length=_INTEGER,
    max_model_len=_INTEGER,
    architecture=_STRING,
    parameter_count=_INTEGER,
    dtype=_STRING,
    quantization_bits={"type": ["integer", "null"]},
    memory_bytes=_INTEGER,
    last_used=_INTEGER,
    pinned=_BOOLEAN,
    adapters=_list(_STRING),
)

COMPONENTS: dict[str, Schema] = {
    "Error": _object(
        error=_optional(
            _object(message=_STRING, type=_STRING, param=_MAYBE_STRING, code=_STRING),
            model=_STRING,
        )
    ),
    "ChatCompletion": _answer(
        "chat.completion",
        _object(
            index=_INTEGER,
            message=_optional(
                _object(role={"const": "assistant"}, content=_MAYBE_STRING, refusal={"type": "null"}),
                reasoning_content=_STRING,
                tool_calls=_list(
                    _object(
                        id=_STRING,
                        type={"const": "function"},
                        function=_object(name=_STRING, arguments=_STRING),
                    )
                ),
            ),
            logprobs=_either(_CHAT_LOGPROBS),
            **_ENDING,
        ),
    ),
    "Completion": _answer(
        "text_completion", _object(index=_INTEGER, text=_STRING, logprobs=_either(_LOGPROBS), **_ENDING)
    ),
    "Model": _optional(_MODEL, parent=_STRING),
    "ModelList": _object(
        object={"const": "list"}, data=_list(_optional(_MODEL, parent=_STRING)), stored=_list(_STRING)
    ),
    "ModelPinned": _object(id=_STRING, object={"const": "model"}, pinned=_BOOLEAN),
    "Adapter": _ADAPTER,
    "AdapterList": _object(
        object={"const": "list"},
        data=_list(_ADAPTER),
        damaged=_list(_object(id=_STRING, object={"const": "adapter"}, error=_STRING)),
    ),
    "AdapterRemoved": _object(id=_STRING, object={"const": "adapter"}, removed=_BOOLEAN),
    "ModelUnloaded": _object(id=_STRING, object={"const": "model"}, state={"const": "unloaded"}),
    "Tokenized": _object(
        model=_STRING,
        tokens=_list(_INTEGER),
        token_strings=_list(_STRING),
        count=_INTEGER,
        max_model_len=_INTEGER,
    ),
    "Detokenized": _object(model=_STRING, text=_STRING),
    "CacheReport": _object(
        object={"const": "list"},
        data=_list(
            _object(
                replica=_STRING,
                model=_STRING,
                enabled=_BOOLEAN,
                **{field.name: _INTEGER for field in attrs.fields(CacheStats) if field.name != "enabled"},
            )
        ),
    ),
    "CacheWarmed": _object(
        object={"const": "list"},
        data=_list(
            _object(
                name=_STRING, model=_STRING, replica=_STRING, tokens=_INTEGER, cached_tokens=_INTEGER, seconds=_NUMBER
            )
        ),
    ),
    "Liveness": _optional(_object(status={"enum": ["alive", "dead"]}), reason=_STRING),
    "Readiness": _object(ready=_BOOLEAN, reason=_STRING),
    "Health": _optional(
        _object(status={"enum": ["ok", "draining", "unavailable"]}, ready=_BOOLEAN, reason=_STRING),
        version=_STRING,
        uptime_seconds=_NUMBER,
        models=_list({"type": "object"}),
        actors=_list({"type": "object"}),
        queue={"type": "object"},
        active_streams=_INTEGER,
        shedding=_list(_STRING),
        memory_rss_bytes=_INTEGER,
        restarts=_INTEGER,
    ),
}
