"""Answers and notifications on their way to the host: JSON, framed, bounded."""

from __future__ import annotations

from typing import Any

import orjson

from mlx_serving.actors.errors import RequestTooLarge
from mlx_serving.frontends.stdio.framing import Framer
from mlx_serving.frontends.stdio.pipes import Outbox
from mlx_serving.frontends.stdio.rpc import RequestId, error_object

STREAM_BACKLOG = 64 << 10
"""Bytes waiting for the host above which streams are not read: their sequences pause without credit."""
REPLY_BACKLOG = 1 << 20
"""Bytes waiting for the host above which answers wait too, and with them their requests."""
_UNLIMITED = 1 << 20
"""What one notification may take when the host sets no limit."""


class Wire:
    """The outgoing side of one host."""

    def __init__(self, framer: Framer, outbox: Outbox) -> None:
        self._framer = framer
        self._outbox = outbox

    @property
    def line_limit(self) -> int | None:
        """Bytes that an answer may have, envelope included; None if it may have any number."""
        return self._framer.line_limit

    @property
    def notification_limit(self) -> int:
        """Bytes that a notification may have, envelope included."""
        return self._framer.line_limit or _UNLIMITED

    async def answer(self, request_id: RequestId | None, result: Any) -> None:
        """The result of a request. One that cannot be sent in a line becomes an error."""
        try:
            body = orjson.dumps({"jsonrpc": "2.0", "id": request_id, "result": result})
        except TypeError as error:
            body = _error(request_id, error)
        if self.line_limit is not None and len(body) >= self.line_limit:
            problem = f"the result has {len(body)} bytes and a line to this host at most {self.line_limit}"
            body = _error(request_id, RequestTooLarge(f"{problem}: ask for less, or use Content-Length framing"))
        await self._send(body, REPLY_BACKLOG)

    async def refuse(self, request_id: RequestId | None, error: BaseException, model_id: str | None = None) -> None:
        """The error that ended a request; id None if it is not known which."""
        await self._send(_error(request_id, error, model_id), REPLY_BACKLOG)

    async def notify(self, method: str, params: Any) -> None:
        """Tell the host something it did not ask for, once it reads."""
        await self._send(orjson.dumps({"jsonrpc": "2.0", "method": method, "params": params}), STREAM_BACKLOG)

    async def flush(self) -> None:
        """Return when everything is written. Raises BrokenPipeError when the host is gone."""
        await self._outbox.room(0)

    async def _send(self, body: bytes, backlog: int) -> None:
        await self._outbox.room(backlog)
        self._outbox.write(self._framer.encode(body))


def _error(request_id: RequestId | None, error: BaseException, model_id: str | None = None) -> bytes:
    return orjson.dumps({"jsonrpc": "2.0", "id": request_id, "error": error_object(error, model_id)})
