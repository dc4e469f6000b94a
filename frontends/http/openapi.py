"""The OpenAPI 3.1 document: request bodies from the parser's own table, responses as they are built."""

from __future__ import annotations

import itertools
from typing import Any

from mlx_serving.frontends.http import parameters
from mlx_serving.frontends.http.kinds import Object, Schema
from mlx_serving.frontends.http.openai import Parser
from mlx_serving.frontends.http.schemas import COMPONENTS

Rule = tuple[dict[str, Schema], ...]
"""Alternatives; each says what some members of a body must be."""

_FAILURES = {
    "400": "The body is wrong; the message lists everything that is, each with its path.",
    "401": "The API key is missing or wrong.",
    "403": "The Host header is not allowed here, or admin calls are switched off.",
    "404": "No such model, or none that is loaded.",
    "413": "The body is too large.",
    "415": "The body is not application/json.",
    "429": "Overload; Retry-After says when to try again.",
    "500": "A bug of this server.",
    "503": "A part of the server is missing, most often for the moment; Retry-After says when to try again.",
    "504": "The request's time was over.",
}
_FOR_GET = ("401", "403", "500", "503", "504")


_EVENT: Schema = {
    "type": "object",
    "description": "One event: a chunk of the answer or an error as JSON, and [DONE] after the last chunk.",
    "properties": {"data": {"type": "string"}},
    "required": ["data"],
}


def document(parser: Parser, version: str, *, needs_key: bool) -> dict[str, Any]:
    """The whole document, ready for JSON."""
    components: dict[str, Any] = {"schemas": COMPONENTS}
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "mlx-serving", "version": version, "license": {"name": "Apache-2.0"}},
        "paths": _paths(parser),
        "components": components,
    }
    if needs_key:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        described["security"] = [{"key": []}]
        for path in ("/livez", "/readyz"):
            described["paths"][path]["get"]["security"] = []
    return described


def _paths(parser: Parser) -> dict[str, Any]:
    chat = _ruled(parser.chat_body, _STREAM_RULE, _TOP_LOGPROBS_RULE, _LENGTH_RULE, _GUIDANCE_RULE)
    completion = _ruled(parser.completion_body, _STREAM_RULE, _ECHO_RULE, _BEST_OF_RULE, _GUIDANCE_RULE)
    tokenize = _ruled(parameters.TOKENIZE_BODY, _SOURCE_RULE)
    return {
        "/v1/chat/completions": _post("createChatCompletion", chat, "ChatCompletion", streams=True),
        "/v1/completions": _post("createCompletion", completion, "Completion", streams=True),
        "/v1/models": _get("listModels", "ModelList"),
        "/v1/models/{model}": _retrieve(),
        "/tokenize": _post("tokenize", tokenize, "Tokenized"),
        "/detokenize": _post("detokenize", parameters.DETOKENIZE_BODY.schema(), "Detokenized"),
        "/admin/models/load": _post("loadModel", parameters.MODEL_BODY.schema(), "Model"),
        "/admin/models/unload": _post("unloadModel", parameters.MODEL_BODY.schema(), "ModelUnloaded"),
        "/admin/models/pin": _post("pinModel", parameters.MODEL_BODY.schema(), "ModelPinned"),
        "/admin/models/unpin": _post("unpinModel", parameters.MODEL_BODY.schema(), "ModelPinned"),
        "/admin/adapters": _get("listAdapters", "AdapterList"),
        "/admin/adapters/add": _post("addAdapter", parameters.ADAPTER_ADD_BODY.schema(), "Adapter"),
        "/admin/adapters/remove": _post("removeAdapter", parameters.ADAPTER_REMOVE_BODY.schema(), "AdapterRemoved"),
        "/admin/cache": _cache_stats(),
        "/admin/cache/clear": _post("clearCache", parameters.CACHE_CLEAR_BODY.schema(), "CacheReport"),
        "/admin/cache/warm": _post("warmCache", parameters.CACHE_WARM_BODY.schema(), "CacheWarmed"),
        "/health": _probe("health", "Health"),
        "/livez": _probe("livez", "Liveness"),
        "/readyz": _probe("readyz", "Readiness"),
        "/metrics": _get_typed("metrics", {"text/plain": {"schema": {"type": "string"}}}),
        "/openapi.json": _get_typed("openapi", {"application/json": {"schema": {"type": "object"}}}),
    }


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": _ref(name)}}


def _responses(content: dict[str, Any], failures: tuple[str, ...]) -> dict[str, Any]:
    answers: dict[str, Any] = {"200": {"description": "The answer.", "content": content}}
    for status in failures:
        answers[status] = {"description": _FAILURES[status], "content": _json("Error")}
    return answers


def _post(name: str, body: Schema, answer: str, *, streams: bool = False) -> dict[str, Any]:
    content = _json(answer)
    if streams:
        content["text/event-stream"] = {"schema": _EVENT}
    operation = {
        "operationId": name,
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": _responses(content, tuple(_FAILURES)),
    }
    return {"post": operation}


def _get_typed(name: str, content: dict[str, Any]) -> dict[str, Any]:
    return {"get": {"operationId": name, "responses": _responses(content, _FOR_GET)}}


def _get(name: str, answer: str) -> dict[str, Any]:
    return _get_typed(name, _json(answer))


def _retrieve() -> dict[str, Any]:
    model = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    operation = {
        "operationId": "retrieveModel",
        "parameters": [model],
        "responses": _responses(_json("Model"), ("404", *_FOR_GET)),
    }
    return {"get": operation}


def _cache_stats() -> dict[str, Any]:
    model = {"name": "model", "in": "query", "schema": {"type": "string", "minLength": 1, "maxLength": 1024}}
    operation = {
        "operationId": "cacheStats",
        "parameters": [model],
        "responses": _responses(_json("CacheReport"), ("400", "404", *_FOR_GET)),
    }
    return {"get": operation}


def _probe(name: str, answer: str) -> dict[str, Any]:
    """A probe's body says why it is not well, in the same shape."""
    responses = {
        "200": {"description": "Well.", "content": _json(answer)},
        "503": {"description": "Not well; the body says why.", "content": _json(answer)},
    }
    for status in ("401", "403"):
        responses[status] = {"description": _FAILURES[status], "content": _json("Error")}
    return {"get": {"operationId": name, "responses": responses}}


def _not_given(*names: str) -> Schema:
    return {name: {"type": "null"} for name in names}


_TRUE: Schema = {"const": True}
_NOT_TRUE: Schema = {"enum": [False, None]}
_TEXT_PROMPT: Schema = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
_STREAM_RULE = (_not_given("stream_options"), {"stream": _TRUE})
_TOP_LOGPROBS_RULE = (_not_given("top_logprobs"), {"logprobs": _TRUE})
_LENGTH_RULE = (_not_given("max_completion_tokens"), _not_given("max_tokens"))
_GUIDANCE_RULE = (_not_given("response_format"), _not_given("structured_outputs"))
_ECHO_RULE: Rule = ({"echo": _NOT_TRUE}, {"echo": _TRUE, "prompt": _TEXT_PROMPT, **_not_given("logprobs")})
_BEST_OF_RULE: Rule = (_not_given("best_of"), {"best_of": {"const": 1}, "n": {"enum": [1, None]}})
_SOURCE_RULE = (
    {"text": {"type": "string"}, **_not_given("content", "messages")},
    {"content": {"type": "string"}, **_not_given("text", "messages")},
    {"messages": {"type": "array"}, **_not_given("text", "content")},
)


def _ruled(body: Object, *rules: Rule) -> Schema:
    """The body's schema where one alternative of each rule holds. Alternatives are about members of the body.

    Spelled out as combinations: tools that make up examples understand these, and not implications.
    """
    alternatives = []
    for combination in itertools.product(*rules):
        properties = {name: schema for part in combination for name, schema in part.items()}
        alternatives.append({"properties": properties, "required": _needed(properties)})
    return {**body.schema(), "anyOf": alternatives}


def _needed(properties: dict[str, Schema]) -> list[str]:
    """A member that must have a value must be there."""
    return [name for name, schema in properties.items() if not _allows_null(schema)]


def _allows_null(schema: Schema) -> bool:
    return schema.get("type") == "null" or None in schema.get("enum", ())
