"""The OpenAPI 3.1 document: request bodies from the parser's own table, responses as they are built."""

from __future__ import annotations

from typing import Any

from mlx_serving.frontends.http import parameters
from mlx_serving.frontends.http.kinds import Object, Schema
from mlx_serving.frontends.http.openai import Parser
from mlx_serving.frontends.http.schemas import COMPONENTS

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
    chat, completion = _with_chat_rules(parser.chat_body), _with_completion_rules(parser.completion_body)
    return {
        "/v1/chat/completions": _post("createChatCompletion", chat, "ChatCompletion", streams=True),
        "/v1/completions": _post("createCompletion", completion, "Completion", streams=True),
        "/v1/models": _get("listModels", "ModelList"),
        "/v1/models/{model}": _retrieve(),
        "/tokenize": _post("tokenize", _with_one_source(parameters.TOKENIZE_BODY), "Tokenized"),
        "/detokenize": _post("detokenize", parameters.DETOKENIZE_BODY.schema(), "Detokenized"),
        "/admin/models/load": _post("loadModel", parameters.MODEL_BODY.schema(), "Model"),
        "/admin/models/unload": _post("unloadModel", parameters.MODEL_BODY.schema(), "ModelUnloaded"),
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
        content["text/event-stream"] = {"schema": {"type": "string"}}
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


def _probe(name: str, answer: str) -> dict[str, Any]:
    """A probe's body says why it is not well, in the same shape."""
    responses = {
        "200": {"description": "Well.", "content": _json(answer)},
        "503": {"description": "Not well; the body says why.", "content": _json(answer)},
    }
    for status in ("401", "403"):
        responses[status] = {"description": _FAILURES[status], "content": _json("Error")}
    return {"get": {"operationId": name, "responses": responses}}


def _given(name: str) -> Schema:
    return {"required": [name], "properties": {name: {"not": {"type": "null"}}}}


def _true(name: str) -> Schema:
    return {"required": [name], "properties": {name: {"const": True}}}


_STREAM_RULE = {"if": _given("stream_options"), "then": _true("stream")}


def _with_chat_rules(body: Object) -> Schema:
    top_logprobs = {
        "required": ["top_logprobs"],
        "properties": {"top_logprobs": {"type": "integer", "minimum": 1}},
    }
    return {**body.schema(), "allOf": [_STREAM_RULE, {"if": top_logprobs, "then": _true("logprobs")}]}


def _with_completion_rules(body: Object) -> Schema:
    text = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    echo_rule = {
        "if": _true("echo"),
        "then": {"properties": {"prompt": text, "logprobs": {"type": "null"}}},
    }
    return {**body.schema(), "allOf": [_STREAM_RULE, echo_rule]}


def _with_one_source(body: Object) -> Schema:
    return {**body.schema(), "oneOf": [_given(name) for name in ("text", "content", "messages")]}
