"""The open streams of one host: opened by a request, followed to their one end, cancelled by id."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import attrs

from mlx_serving.actors.errors import InvalidParameter
from mlx_serving.actors.messages.admission import GenerationRequested
from mlx_serving.actors.messages.frontend import Delta, RequestFinished
from mlx_serving.frontends.client import Client, Stream
from mlx_serving.frontends.stdio import results
from mlx_serving.frontends.stdio.chunks import Token, chunks, tokens_of
from mlx_serving.frontends.stdio.rpc import error_object
from mlx_serving.frontends.stdio.wire import Wire

_log = logging.getLogger(__name__)

Tell = Callable[[dict[str, Any]], Awaitable[None]]
"""Brings the parameters of one chunk to the host, as soon as it reads."""


@attrs.frozen(eq=False)
class Opened:
    """A stream that the runtime has accepted and nobody knows of yet. `started_at`: seconds of the epoch."""

    stream_id: str
    source: Stream
    started_at: float

    def started(self) -> dict[str, Any]:
        """The result that says so to the host."""
        return {"stream_id": self.stream_id, "started_at": self.started_at}


@attrs.define
class Follower:
    """Reads one stream to its end and tells its chunks: as they come, or all at the end if not `streaming`.

    While `tell` waits for the host, the stream is not read: its sequence pauses when its credit is spent.
    """

    opened: Opened
    tell: Tell
    limit: int
    streaming: bool = True
    keep: bool = False
    """Whether `told` and `token_ids` are wanted afterwards."""
    told: list[Token] = attrs.field(factory=list)
    token_ids: list[int] = attrs.field(factory=list)
    reason: str | None = None
    _last_id: int = 0

    async def follow(self) -> RequestFinished:
        """Return when everything was told. Raises the ServingError that ended the stream."""
        async with self.opened.source as source:
            async for deltas in source:
                tokens: list[Token] = []
                for delta in deltas:
                    tokens += self._take(delta)
                await self._pass_on(tokens)
            finished = source.result
        if not self.streaming:
            await self._tell(self.told)
        return finished

    def _take(self, delta: Delta) -> list[Token]:
        tokens = tokens_of(delta, self._last_id)
        if delta.token_ids:
            self._last_id = delta.token_ids[-1]
        if self.keep:
            self.token_ids += delta.token_ids
        if delta.end is not None:
            self.reason = delta.end.reason
        return tokens

    async def _pass_on(self, tokens: list[Token]) -> None:
        if self.keep or not self.streaming:
            self.told += tokens
        if self.streaming:
            await self._tell(tokens)

    async def _tell(self, tokens: list[Token]) -> None:
        for chunk in chunks(self.opened.stream_id, tokens, self.limit):
            await self.tell(chunk)


class Streams:
    """Every stream of the host by its id."""

    def __init__(self, client: Client, wire: Wire) -> None:
        self._client = client
        self._wire = wire
        self._sources: dict[str, Stream] = {}
        self._followers: set[asyncio.Task[None]] = set()

    async def open(self, request: GenerationRequested, stream_id: str | None) -> Opened:
        """Submit the request; return when it is accepted. Raises the ServingError that refuses it.

        From the first moment on, the stream can be cancelled by its id.
        """
        name = stream_id or uuid.uuid4().hex
        if name in self._sources:
            raise InvalidParameter(f"stream_id {name} is in use; give each its own", field="stream_id")
        source = self._sources[name] = self._client.submit(request)
        try:
            await source.accepted()
        except BaseException:
            self.drop(name)
            raise
        return Opened(name, source, time.time())

    def drop(self, stream_id: str) -> None:
        """Forget the stream, and end it if it still runs. No event tells of it."""
        if (source := self._sources.pop(stream_id, None)) is not None:
            source.cancel()

    def begin(self, opened: Opened, streaming: bool) -> None:
        """Tell the stream by notifications from now on: chunks, stats, and one event at its end."""
        task = asyncio.create_task(self._announce(opened, streaming), name=f"stream {opened.stream_id}")
        self._followers.add(task)
        task.add_done_callback(self._followers.discard)

    async def progress(self, opened: Opened, token: str | int | float, streaming: bool) -> dict[str, Any]:
        """Tell the stream by `$/progress`; return its whole result. Raises the ServingError that ended it."""

        async def tell(chunk: dict[str, Any]) -> None:
            await self._wire.notify("$/progress", {"token": token, "value": chunk})

        follower = Follower(opened, tell, self._wire.notification_limit, streaming, keep=True)
        try:
            finished = await follower.follow()
        finally:
            self._sources.pop(opened.stream_id, None)
        return results.completion(opened.started(), follower.told, follower.token_ids, follower.reason, finished)

    def cancel(self, stream_id: str) -> bool:
        """End the stream; its terminal event says that it was cancelled. False if there is no such stream."""
        source = self._sources.get(stream_id)
        if source is not None:
            source.cancel()
        return source is not None

    def cancel_all(self) -> None:
        for source in self._sources.values():
            source.cancel()

    async def ended(self) -> None:
        """Return when no stream is being told."""
        while self._followers:
            await asyncio.wait(self._followers)

    async def abandon(self) -> None:
        """End every stream without another word to the host."""
        for task in self._followers:
            task.cancel()
        await self.ended()

    async def _announce(self, opened: Opened, streaming: bool) -> None:
        async def tell(chunk: dict[str, Any]) -> None:
            await self._wire.notify("stream.chunk", chunk)

        follower = Follower(opened, tell, self._wire.notification_limit, streaming)
        try:
            finished = await follower.follow()
            stats = {"stream_id": opened.stream_id, **results.stats(finished)}
            await self._wire.notify("stream.stats", stats)
            await self._end(opened, {"event": "completed", "finish_reason": follower.reason})
        except BrokenPipeError:
            _log.debug("the host went away during stream %s", opened.stream_id)
        except Exception as error:
            await self._fail(opened, error)
        finally:
            self._sources.pop(opened.stream_id, None)

    async def _fail(self, opened: Opened, error: Exception) -> None:
        told = error_object(error)
        if told["code"] == -32603:
            _log.error("stream %s failed", opened.stream_id, exc_info=error)
        try:
            await self._end(opened, {"event": "error", "error": told["message"], "code": told["code"]})
        except BrokenPipeError:
            _log.debug("the host went away during stream %s", opened.stream_id)

    async def _end(self, opened: Opened, event: dict[str, Any]) -> None:
        await self._wire.notify("stream.event", {"stream_id": opened.stream_id, **event, "is_final": True})
