"""The incoming side of JSON-RPC: what a message is, who deals with it, one answer to each request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import attrs
import orjson

from mlx_serving.actors.errors import ActorUnavailable, Cancelled, Overloaded, RequestTooLarge
from mlx_serving.frontends.stdio.calls import MOST_PENDING, Call
from mlx_serving.frontends.stdio.framing import Incoming, Malformed, Oversize
from mlx_serving.frontends.stdio.methods import METHODS, UNSUPPORTED, Method
from mlx_serving.frontends.stdio.parameters import read
from mlx_serving.frontends.stdio.rpc import (
    LONGEST_ID,
    InvalidRequest,
    MethodNotFound,
    ParseError,
    RequestId,
    error_object,
    is_id,
    shorten,
)
from mlx_serving.frontends.stdio.session import Session

_log = logging.getLogger(__name__)

CANCEL_REQUEST = "$/cancelRequest"
_RETRY_SECONDS = 1.0


@attrs.frozen
class Request:
    """A request, or a notification if `request_id` is None."""

    method: str
    params: Any
    request_id: RequestId | None


class Rejected(Exception):
    """A message that is no request; `request_id` if it could be read."""

    def __init__(self, error: Exception, request_id: RequestId | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.request_id = request_id


def understand(incoming: Incoming) -> Request | None:
    """The request in what came in; None for a response, which nobody here waits for. Raises Rejected."""
    if isinstance(incoming, Malformed):
        raise Rejected(ParseError(incoming.reason))
    if isinstance(incoming, Oversize):
        problem = f"the message has more than {incoming.limit} bytes (setting stdio.max_line_bytes)"
        raise Rejected(RequestTooLarge(problem), incoming.request_id)
    try:
        message = orjson.loads(incoming)
    except orjson.JSONDecodeError as error:
        raise Rejected(ParseError(f"the message is not JSON: {error}")) from None
    if isinstance(message, list):
        raise Rejected(InvalidRequest("batches are not supported: send the requests one by one"))
    if not isinstance(message, dict):
        raise Rejected(InvalidRequest("the message is not an object"))
    return _request(message)


def _request(message: dict[str, Any]) -> Request | None:
    if "method" not in message and ("result" in message or "error" in message):
        return None
    request_id = message.get("id")
    if "id" in message and not is_id(request_id):
        raise Rejected(InvalidRequest(f"id must be a number or a string of at most {LONGEST_ID} characters"))
    if message.get("jsonrpc") != "2.0":
        raise Rejected(InvalidRequest('jsonrpc must be "2.0"'), request_id)
    if not isinstance(message.get("method"), str):
        raise Rejected(InvalidRequest("method must be a string"), request_id)
    params = message.get("params")
    return Request(message["method"], {} if params is None or params == [] else params, request_id)


class Endpoint:
    """Takes messages in one after the other and works on requests side by side."""

    def __init__(self, session: Session, methods: Mapping[str, Method] = METHODS) -> None:
        self._session = session
        self._methods = methods

    async def receive(self, incoming: Incoming) -> None:
        """Deal with one message, or begin to. Waits only while answers wait for the host to read them.

        Raises BrokenPipeError when the host is gone.
        """
        try:
            request = understand(incoming)
        except Rejected as rejected:
            await self._session.wire.refuse(rejected.request_id, rejected.error)
            return
        if request is not None:
            await self._dispatch(request)

    async def _dispatch(self, request: Request) -> None:
        if request.method == CANCEL_REQUEST:
            self._session.calls.cancel(request.params.get("id") if isinstance(request.params, dict) else None)
            if request.request_id is not None:
                await self._session.wire.answer(request.request_id, None)
            return
        try:
            method = self._method(request.method)
        except Exception as error:
            if request.request_id is not None:
                await self._session.wire.refuse(request.request_id, error)
            else:
                _log.warning("a notification was dropped: %s", error)
            return
        call = Call(request.request_id)
        self._session.calls.start(call, self._work(method, request, call))

    def _method(self, name: str) -> Method:
        """The method of this name. Raises what says why it cannot be called now."""
        method = self._methods.get(name)
        if method is None:
            why = UNSUPPORTED.get(name, "is not a known method")
            raise MethodNotFound(f"{shorten(name, LONGEST_ID)} {why}")
        if self._session.closing:
            raise ActorUnavailable("the runtime is shutting down")
        if self._session.calls.is_full and not method.urgent:
            raise Overloaded(f"{MOST_PENDING} requests are pending already", retry_after=_RETRY_SECONDS)
        return method

    async def _work(self, method: Method, request: Request, call: Call) -> None:
        try:
            call.begin()
            result = await method.handle(self._session, read(request.params, method.parameters), call)
        except asyncio.CancelledError:
            await self._fail(request, call, Cancelled("the request was cancelled"))
        except Exception as error:
            await self._fail(request, call, error)
        else:
            await self._succeed(call, result)

    async def _succeed(self, call: Call, result: Any) -> None:
        call.settle()
        try:
            if call.request_id is not None:
                await self._session.wire.answer(call.request_id, result)
        except BrokenPipeError:
            return  # the server notices by itself that the host is gone
        call.answered()

    async def _fail(self, request: Request, call: Call, error: Exception) -> None:
        call.settle()
        if error_object(error)["code"] == -32603:
            _log.error("%s failed", request.method, exc_info=error)
        if call.request_id is None:
            return
        try:
            await self._session.wire.refuse(call.request_id, error, _model_id(request.params))
        except BrokenPipeError:
            return


def _model_id(params: Any) -> str | None:
    model_id = params.get("model_id") if isinstance(params, dict) else None
    return model_id if isinstance(model_id, str) else None
