"""Reading a request's JSON body."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from mlx_serving.frontends.http.openai import read_json

Parsed = TypeVar("Parsed")

LARGE = 128 << 10
"""Bytes from which a body is read beside the loop, so that running streams go on."""


async def read_json_body(scope: Scope, receive: Receive, parse: Callable[[Any], Parsed]) -> Parsed:
    """What `parse` makes of the body. Raises HTTPException 415, CallerError, and ClientDisconnect."""
    media_type = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise HTTPException(415, f"Content-Type must be application/json, got {media_type[:60] or 'none'}")
    body = await _read(receive)
    if len(body) < LARGE:
        return parse(read_json(body))
    return await asyncio.to_thread(lambda: parse(read_json(body)))


async def _read(receive: Receive) -> bytearray:
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body
