"""JSON responses, and errors in the shape of the OpenAI API."""

from __future__ import annotations

import math
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response

from mlx_serving.actors.errors import ServingError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}
_HTTP_CODES = {
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    415: "unsupported_media_type",
}


class JsonReply(Response):
    """A JSON body, written by orjson."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


def error_body(error: ServingError) -> dict[str, Any]:
    """`{"error": {message, type, param, code}}`, plus the model concerned if there is one."""
    body = {
        "message": error.message,
        "type": _type_of(error.http_status),
        "param": error.field,
        "code": error.code,
    }
    if error.model is not None:
        body["model"] = error.model
    return {"error": body}


def error_reply(error: ServingError) -> JsonReply:
    """The response to a request that failed before its answer began."""
    headers = {}
    if error.retryable or error.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after or 1.0)))
    if error.http_status == 401:
        headers["www-authenticate"] = "Bearer"
    return JsonReply(error_body(error), error.http_status, headers)


def http_error_reply(error: HTTPException) -> JsonReply:
    """The response to a request that is wrong in terms of HTTP: path, method, media type, Host."""
    status = error.status_code
    body = {
        "message": error.detail,
        "type": _type_of(status),
        "param": None,
        "code": _HTTP_CODES.get(status, "invalid_request"),
    }
    return JsonReply({"error": body}, status, dict(error.headers or {}))


def _type_of(status: int) -> str:
    return _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
