"""What stands before every endpoint, as plain ASGI: request id, errors, Host, API key, size of the body."""

from __future__ import annotations

import hmac
import logging
import re
import secrets

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_serving.actors.errors import RequestTooLarge, ServingError, Unauthorized, describe
from mlx_serving.frontends.http.replies import error_reply, http_error_reply

_log = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/livez", "/readyz"})
"""Probes need no API key."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Outermost:
    """Puts x-request-id on every response; answers what was raised before one began in OpenAI's error shape.

    The request id is the caller's own if it is plain, a new one otherwise. Both jobs share one layer because
    every layer around `send` costs every streamed token.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = _request_id(scope)
        has_begun = False

        async def watched_send(message: Message) -> None:
            nonlocal has_begun
            if not has_begun:
                has_begun = True
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        except ClientDisconnect:
            return
        except Exception as error:
            if has_begun:
                raise
            await _reply_to(error, scope)(scope, receive, watched_send)


def _request_id(scope: Scope) -> bytes:
    given = Headers(scope=scope).get("x-request-id", "")
    return (given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}").encode()


def _reply_to(error: Exception, scope: Scope) -> ASGIApp:
    if isinstance(error, HTTPException):
        if error.status_code in (404, 405):
            error.detail = "There is no " + _named(scope)
        return http_error_reply(error)
    if not isinstance(error, ServingError):
        _log.error("%s broke", _named(scope), exc_info=error)
    return error_reply(describe(error).to_exception())


def _named(scope: Scope) -> str:
    return f"{scope['method']} {scope['path'][:200]}"


class HostGuard:
    """Lets in only requests that name one of `hosts`.

    A page of any site can make a browser call loopback under a name of its own (DNS rebinding); the Host
    header gives it away. Requests without one come from no browser.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = Headers(scope=scope).get("host")
        if host is not None and host_name(host) not in self._hosts:
            raise HTTPException(403, "The Host header names neither loopback nor the address this server is bound to")
        await self._app(scope, receive, send)


def host_name(host: str) -> str:
    """The name in a Host header: without port, trailing dot and brackets, in lower case."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.rstrip(".").lower()


class ApiKey:
    """Lets in only requests with the bearer token `key`, and to probes everybody."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._expected = b"bearer " + key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] not in OPEN_PATHS and not self._is_right(scope):
            raise Unauthorized("The Authorization header must be: Bearer and the server's API key")
        await self._app(scope, receive, send)

    def _is_right(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, token = given.partition(b" ")
        return hmac.compare_digest(scheme.lower() + b" " + token.strip(), self._expected)


class NoAdmin:
    """Refuses admin calls: anybody can reach the server and there is no API key."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith("/admin/"):
            raise HTTPException(403, "Admin calls need an API key when the server is not bound to loopback")
        await self._app(scope, receive, send)


class BodyLimit:
    """Refuses a body over `most` bytes: by its announced length before reading, or as soon as it is over."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        announced = Headers(scope=scope).get("content-length", "")
        # The HTTP parser has checked that it is a number.
        self._check(int(announced or 0))
        size = 0

        async def counted_receive() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            self._check(size)
            return message

        await self._app(scope, counted_receive, send)

    def _check(self, size: int) -> None:
        if size > self._most:
            raise RequestTooLarge(f"The body is larger than {self._most} bytes (setting http.max_body_bytes)")
