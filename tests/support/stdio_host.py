"""A host on real pipes, in front of a StdioServer with a FakeClient behind it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import attrs
from support.fake_client import FakeClient

from mlx_serving.actors.messages.admission import ShutdownRequested
from mlx_serving.actors.messages.frontend import Done
from mlx_serving.config.schema import Settings, Stdio, Supervision
from mlx_serving.frontends.stdio.server import Connect, StdioServer

PATIENCE = 60.0
Message = dict[str, Any]


def settings(*, drain_seconds: float = 2.0, **stdio: Any) -> Settings:
    return Settings(stdio=Stdio(**stdio), supervision=Supervision(drain_seconds=drain_seconds))


@attrs.define(eq=False)
class Host:
    """Sends lines, or framed messages if `headers`, and reads what comes back."""

    in_fd: int
    reader: asyncio.StreamReader
    transport: asyncio.ReadTransport | None
    server: StdioServer
    serving: asyncio.Task[None]
    headers: bool = False
    seen: list[Message] = attrs.field(factory=list)
    longest_line: int = 0

    def write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.in_fd, data) :]

    async def write_much(self, data: bytes) -> None:
        """More than the pipe holds."""
        await asyncio.to_thread(self.write, data)

    def send(self, message: Any) -> None:
        body = json.dumps(message).encode()
        self.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body) if self.headers else body + b"\n")

    def call(self, method: str, params: Any = None, request_id: Any = 1) -> None:
        message = {"jsonrpc": "2.0", "id": request_id, "method": method}
        self.send(message if params is None else {**message, "params": params})

    def notify(self, method: str, params: Any) -> None:
        self.send({"jsonrpc": "2.0", "method": method, "params": params})

    async def receive(self) -> Message:
        async with asyncio.timeout(PATIENCE):
            message = json.loads(await self._body())
        self.seen.append(message)
        assert message["jsonrpc"] == "2.0"
        return cast(Message, message)

    async def _body(self) -> bytes:
        if not self.headers:
            line = await self.reader.readline()
            self.longest_line = max(self.longest_line, len(line))
            return line
        header = await self.reader.readuntil(b"\r\n\r\n")
        name, _, length = header.partition(b":")
        assert name == b"Content-Length"
        return await self.reader.readexactly(int(length))

    async def until(self, wanted: Callable[[Message], bool]) -> Message:
        while not wanted(message := await self.receive()):
            pass
        return message

    async def answer(self, request_id: Any = 1) -> Message:
        return await self.until(lambda message: message.get("id", self) == request_id)

    async def ask(self, method: str, params: Any = None, request_id: Any = 1) -> Message:
        self.call(method, params, request_id)
        return await self.answer(request_id)

    async def end_of(self, stream_id: str) -> list[Message]:
        """Every notification of the stream up to its terminal event."""
        await self.until(lambda message: _is_of(message, stream_id) and message["method"] == "stream.event")
        return [message for message in self.seen if _is_of(message, stream_id)]

    def hang_up(self) -> None:
        """Close the end that the server reads."""
        if self.in_fd >= 0:
            os.close(self.in_fd)
            self.in_fd = -1

    def pause(self) -> None:
        """Read no more."""
        assert self.transport is not None
        self.transport.pause_reading()

    def resume(self) -> None:
        assert self.transport is not None
        self.transport.resume_reading()

    def break_off(self) -> None:
        """Close the end that the server writes to."""
        if self.transport is not None:
            self.transport.close()

    async def over(self) -> None:
        """Return when the server has ended by itself."""
        async with asyncio.timeout(PATIENCE):
            await asyncio.shield(self.serving)


def _is_of(message: Message, stream_id: str) -> bool:
    return bool(message.get("params", {}).get("stream_id") == stream_id)


@contextlib.asynccontextmanager
async def connected(
    client: FakeClient, *, headers: bool = False, configuration: Settings | None = None, reading: bool = True
) -> AsyncIterator[Host]:
    """A host whose server runs on this loop. Without `reading` nobody reads what the server says."""
    client.answers.setdefault(ShutdownRequested, Done())
    from_host, in_fd = os.pipe()
    out_fd, to_host = os.pipe()
    server = StdioServer(
        configuration or settings(), client, from_host, to_host, connect=cast(Connect, FakeClient.connect)
    )
    reader = asyncio.StreamReader(limit=1 << 30)
    pipe = os.fdopen(out_fd, "rb")
    transport = await _listen(reader, pipe) if reading else None
    host = Host(in_fd, reader, transport, server, asyncio.create_task(server.serve()), headers)
    try:
        yield host
    finally:
        host.hang_up()
        host.break_off()
        await asyncio.sleep(0)
        pipe.close()
        await host.over()
        os.close(from_host)
        os.close(to_host)


async def _listen(reader: asyncio.StreamReader, pipe: Any) -> asyncio.ReadTransport:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    return transport


def texts(notifications: list[Message]) -> list[str]:
    """The text of every token, in order, whichever form its chunk has."""
    chunks = [each["params"] for each in notifications if each["method"] == "stream.chunk"]
    return [token["token"] for chunk in chunks for token in chunk.get("tokens", [chunk])]


async def until(fact: Any) -> None:
    async with asyncio.timeout(60):
        while not fact():  # noqa: ASYNC110
            await asyncio.sleep(0)
