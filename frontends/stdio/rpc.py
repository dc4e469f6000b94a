"""JSON-RPC 2.0: request ids, the protocol's own errors, and the error object of any failure."""

from __future__ import annotations

from typing import Any

from mlx_serving.actors.errors import ModelNotLoaded, describe

RequestId = str | int | float
LONGEST_ID = 256
"""Characters of a string id; a longer one could not be echoed within a bounded line."""
LONGEST_MESSAGE = 2000
"""Characters of an error's text; the rest is cut off."""

_HOST_FIELDS = {"model": "model_id", "name": "model_id", "stop": "stop_sequences"}
"""Parameters that the runtime calls otherwise than hosts do."""


class RpcError(Exception):
    """The message breaks JSON-RPC itself, or asks for a method that is not there."""

    code = 0
    name = ""


class ParseError(RpcError):
    """Bytes that are not JSON, or not framed."""

    code = -32700
    name = "parse_error"


class InvalidRequest(RpcError):
    """JSON that is not one JSON-RPC 2.0 request."""

    code = -32600
    name = "invalid_request"


class MethodNotFound(RpcError):
    """A method that does not exist, or that is not supported."""

    code = -32601
    name = "method_not_found"


def is_id(value: Any) -> bool:
    """Whether a request may carry this id: a number, or a string that is not overlong."""
    if isinstance(value, str):
        return len(value) <= LONGEST_ID
    return isinstance(value, int | float) and not isinstance(value, bool)


def shorten(text: str, longest: int) -> str:
    """At most `longest` characters, the last of them an ellipsis where something is missing."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def error_object(error: BaseException, model_id: str | None = None) -> dict[str, Any]:
    """The `error` member that reports `error`; `model_id` is the model as the host named it in the request.

    `data` has the stable name `code` and, where they apply, `field`, `model_id` and `retry_after` (seconds).
    """
    if isinstance(error, RpcError):
        return _object(error.code, str(error), {"code": error.name})
    info = describe(error)
    data: dict[str, Any] = {"code": info.code}
    if info.field is not None:
        data["field"] = shorten(_HOST_FIELDS.get(info.field, info.field), LONGEST_ID)
    named = info.model or (model_id if info.kind.rpc_code == ModelNotLoaded.rpc_code else None)
    if named is not None:
        data["model_id"] = shorten(model_id or named, LONGEST_ID)
    if info.retry_after is not None:
        data["retry_after"] = info.retry_after
    return _object(info.kind.rpc_code, info.message, data)


def _object(code: int, message: str, data: dict[str, Any]) -> dict[str, Any]:
    return {"code": code, "message": shorten(message, LONGEST_MESSAGE), "data": data}
