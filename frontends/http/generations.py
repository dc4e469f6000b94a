"""POST /v1/chat/completions and /v1/completions, as ASGI applications."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import Receive, Scope, Send

from mlx_serving.actors.errors import ServingError, describe
from mlx_serving.frontends.client import Client
from mlx_serving.frontends.http.answers import Heading, WholeAnswer
from mlx_serving.frontends.http.body import read_json_body
from mlx_serving.frontends.http.exchange import Exchange
from mlx_serving.frontends.http.openai import Call
from mlx_serving.frontends.http.replies import JsonReply
from mlx_serving.frontends.http.sse import EventEncoder, EventStream, error_event

_log = logging.getLogger(__name__)


class Running:
    """The exchanges under way. Used from the server's loop only."""

    def __init__(self) -> None:
        self._exchanges: set[Exchange] = set()

    @asynccontextmanager
    async def run(self, client: Client, call: Call, receive: Receive) -> AsyncIterator[Exchange]:
        """An exchange that is cancelled at once when its caller disconnects."""
        async with Exchange(client, call) as exchange:
            self._exchanges.add(exchange)
            watcher = asyncio.create_task(_watch(receive, exchange))
            try:
                yield exchange
            finally:
                watcher.cancel()
                self._exchanges.discard(exchange)

    def fail_all(self, error: ServingError) -> None:
        """End every exchange with `error`."""
        for exchange in list(self._exchanges):
            exchange.cancel(error)


async def _watch(receive: Receive, exchange: Exchange) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    exchange.abandon()


class Generations:
    """One endpoint: `parse` reads its body. `fingerprint` names the software that answers."""

    def __init__(
        self,
        client: Client,
        running: Running,
        parse: Callable[[Any], Call],
        heartbeat_seconds: float,
        fingerprint: str,
    ) -> None:
        self._client = client
        self._running = running
        self._parse = parse
        self._heartbeat_seconds = heartbeat_seconds
        self._fingerprint = fingerprint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = await read_json_body(scope, receive, self._parse)
        async with self._running.run(self._client, call, receive) as exchange:
            try:
                heading = Heading.of(call, await exchange.accepted(), self._fingerprint)
                if call.stream:
                    if call.is_guided:
                        # What it is held to is compiled first, and may turn out to be impossible.
                        await exchange.begun(self._heartbeat_seconds)
                    await self._stream(call, heading, exchange, send)
                else:
                    answer = WholeAnswer(call)
                    await exchange.deliver(answer.add)
                    await JsonReply(answer.body(heading, *exchange.result()))(scope, receive, send)
            except ServingError:
                if not exchange.is_abandoned:
                    raise

    async def _stream(self, call: Call, heading: Heading, exchange: Exchange, send: Send) -> None:
        encoder = EventEncoder(call, heading)
        async with EventStream(send, encoder, self._heartbeat_seconds) as events:
            try:
                await events.write(encoder.opening())
                await exchange.deliver(events.write_deltas)
                last = encoder.closing(*exchange.result())
            except Exception as error:
                last = _failure(error)
            await events.end(last)


def _failure(error: Exception) -> bytes:
    """What ends a stream whose headers are out: its status can no longer say that it failed."""
    if not isinstance(error, ServingError):
        _log.error("A stream broke", exc_info=error)
    return error_event(describe(error).to_exception())
