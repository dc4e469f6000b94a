"""A tiny event-stream server whose behaviour the request body chooses; it counts what it saw."""

from __future__ import annotations

import asyncio
import json
import threading
from types import TracebackType
from typing import Any

import attrs

_EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"w%d "},"finish_reason":null}]}\n\n'
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


@attrs.define(eq=False)
class EventServer:
    """Serves on a thread while used as a context manager.

    Body fields: `max_tokens`; `close` ends the body by closing; `status` answers that error; `cut` closes in
    the middle; `per_write` puts so many events into one chunk; `hang` never answers.
    """

    port: int = 0
    connections: int = 0
    requests: list[dict[str, Any]] = attrs.field(factory=list)
    headers: list[bytes] = attrs.field(factory=list)
    _loop: asyncio.AbstractEventLoop = attrs.field(factory=asyncio.new_event_loop)
    _thread: threading.Thread | None = None
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = attrs.field(factory=set)

    def __enter__(self) -> EventServer:
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        assert self._thread is not None
        self._thread.join(60)
        self._loop.close()

    async def _stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass  # the client left, or the test ended
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        self.headers.append(head)
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        body = json.loads(await reader.readexactly(length))
        self.requests.append(body)
        if body.get("hang"):
            await asyncio.Event().wait()
        if "status" in body:
            document = b'{"error":{"message":"no","type":"t"}}'
            writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (body["status"], len(document), document))
        else:
            await self._stream(writer, body)
        await writer.drain()
        return not (body.get("close") or body.get("cut"))

    async def _stream(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        chunked = not body.get("close")
        writer.write(_HEAD + (b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Connection: close\r\n\r\n"))
        tokens, group = body["max_tokens"], body.get("per_write", 1)
        for start in range(0, tokens, group):
            data = b"".join(_EVENT % number for number in range(start, min(start + group, tokens)))
            writer.write(_chunk(data) if chunked else data)
            await writer.drain()
            if body.get("cut"):
                return
        usage = b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":%d}}' % tokens
        finish = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}\n\n'
        data = finish + b"data: " + usage + b"\n\n" + b"data: [DONE]\n\n"
        writer.write(_chunk(data) + b"0\r\n\r\n" if chunked else data)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)
