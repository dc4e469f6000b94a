"""Several requests in one: each is answered for itself, whatever becomes of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import orjson

from mlx_serving.actors.errors import RequestTooLarge
from mlx_serving.frontends.stdio.rpc import error_object

_ENVELOPE = 2048
"""Bytes of an answer besides its results, at most."""
_REFUSAL = 320
"""Bytes of a result that was left out, at most."""

One = Callable[[Any, str], Awaitable[Any]]
"""Answers one request of a batch; the second argument is its path, for errors."""


async def each(requests: Iterable[Any], one: One, line_limit: int | None) -> dict[str, Any]:
    """`{results: [{success, result, error}]}` in the order of `requests`, which are answered side by side.

    `error` is a text; `code` and `data` stand beside it, as in the error of a single request. Results that
    would make the answer longer than `line_limit` bytes are left out, each with an error that says so.
    """
    work = (_item(request, f"requests[{index}]", one) for index, request in enumerate(requests))
    items = await asyncio.gather(*work)
    return {"results": items if line_limit is None else _fitting(items, line_limit)}


async def _item(request: Any, path: str, one: One) -> dict[str, Any]:
    try:
        return {"success": True, "result": await one(request, path), "error": None}
    except Exception as error:  # told to the host, for this item alone
        return _failed(error)


def _failed(error: Exception) -> dict[str, Any]:
    told = error_object(error)
    return {"success": False, "result": None, "error": told.pop("message"), **told}


def _fitting(items: list[dict[str, Any]], line_limit: int) -> list[dict[str, Any]]:
    left = line_limit - _ENVELOPE - _REFUSAL * len(items)
    fitting = []
    for item in items:
        size = len(orjson.dumps(item))
        if size > max(left, _REFUSAL):
            problem = "the result does not fit into the line beside the others: ask for it alone"
            fitting.append(_failed(RequestTooLarge(problem)))
        else:
            left -= size
            fitting.append(item)
    return fitting
