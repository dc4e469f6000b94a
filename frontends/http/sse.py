"""Server-sent events, written as bytes straight to the ASGI `send`.

An answer's events differ only in their text, so everything around it is prepared once: a delta costs one JSON
string and one concatenation. Deltas that have arrived together leave in one `send`, one event each. Several
of one choice mean that the consumer is behind; they share an event unless log-probabilities were asked for.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

import orjson
from starlette.types import Send

from mlx_serving.actors.errors import ServingError
from mlx_serving.actors.messages.frontend import Delta
from mlx_serving.actors.messages.values import SequenceEnd, Timings, ToolCallPart, Usage
from mlx_serving.frontends import tool_calls
from mlx_serving.frontends.http.answers import Heading, timings_body, usage_body
from mlx_serving.frontends.http.logprobs import chat_logprobs, completion_logprobs
from mlx_serving.frontends.http.openai import Call
from mlx_serving.frontends.http.replies import error_body

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Proxies such as nginx would otherwise hold events back.
    (b"x-accel-buffering", b"no"),
]


class EventEncoder:
    """The events of one streamed answer as bytes."""

    def __init__(self, call: Call, heading: Heading) -> None:
        self._call = call
        self._head = b"data: " + orjson.dumps(heading.fields(chunk=True))[:-1] + b',"choices":['
        self._tail = b"]%s}\n\n" % (b',"usage":null' if call.include_usage else b"")
        self._content, content_end = (b'"delta":{"content":', b"}") if call.is_chat else (b'"text":', b"")
        self._prefixes = [self._prefix(index) + self._content for index in range(call.choices)]
        self._before_logprobs = content_end + b',"logprobs":'
        self._after_logprobs = b',"finish_reason":null}' + self._tail
        self._suffix = self._before_logprobs + b"null" + self._after_logprobs
        self._offsets = [0] * call.choices

    def _prefix(self, index: int) -> bytes:
        return self._head + b'{"index":%d,' % index

    def opening(self) -> bytes:
        """What comes before the first token: the role of each choice, or the echoed prompt."""
        if self._call.is_chat:
            role = b'"delta":{"role":"assistant","content":""'
            return b"".join(self._prefix(index) + role + self._suffix for index in range(self._call.choices))
        if self._call.echoes:
            return b"".join(
                self._text(index, self._call.echoes[index // self._call.n]) for index in range(self._call.choices)
            )
        return b""

    def deltas(self, deltas: list[Delta]) -> bytes:
        """The events of deltas that have arrived together; empty when they hold no complete character."""
        if self._call.logprobs:
            return b"".join([self._with_logprobs(delta) for delta in deltas])
        if len(deltas) == 1:
            return self._one(deltas[0])
        return self._merged(deltas)

    def _one(self, delta: Delta) -> bytes:
        event = self._said(delta)
        return event if delta.end is None else event + self._end(delta.index, delta.end)

    def _said(self, delta: Delta) -> bytes:
        event = self._text(delta.index, delta.text) if delta.text else b""
        if delta.reasoning or delta.tool_calls:
            return self._apart(delta.index, delta.reasoning, delta.tool_calls, event)
        return event

    def _merged(self, deltas: list[Delta]) -> bytes:
        together: dict[int, Delta] = {}
        for delta in deltas:
            before = together.get(delta.index)
            together[delta.index] = delta if before is None else _following(before, delta)
        ends = [self._end(delta.index, delta.end) for delta in together.values() if delta.end is not None]
        return b"".join([*map(self._said, together.values()), *ends])

    def _apart(self, index: int, reasoning: str, calls: tuple[ToolCallPart, ...], text: bytes) -> bytes:
        """Reasoning comes before the text's event, calls after it."""
        event = self._delta(index, {"reasoning_content": reasoning}) if reasoning else b""
        event += text
        return event + self._delta(index, {"tool_calls": tool_calls.told(calls)}) if calls else event

    def _delta(self, index: int, fields: dict[str, Any]) -> bytes:
        """An event of a chat with any fields. The suffix closes the delta."""
        return self._prefix(index) + b'"delta":' + orjson.dumps(fields)[:-1] + self._suffix

    def _text(self, index: int, text: str) -> bytes:
        return self._prefixes[index] + orjson.dumps(text) + self._suffix

    def _with_logprobs(self, delta: Delta) -> bytes:
        event = b""
        if delta.reasoning or delta.tool_calls:
            event = self._apart(delta.index, delta.reasoning, delta.tool_calls, b"")
        if delta.text or delta.logprobs:
            if self._call.is_chat:
                logprobs = chat_logprobs(delta.logprobs)
            else:
                logprobs = completion_logprobs(delta.logprobs, self._offsets[delta.index])
                self._offsets[delta.index] += sum(len(token.token) for token in delta.logprobs)
            event += b"".join(
                (
                    self._prefixes[delta.index],
                    orjson.dumps(delta.text),
                    self._before_logprobs,
                    orjson.dumps(logprobs),
                    self._after_logprobs,
                )
            )
        return event if delta.end is None else event + self._end(delta.index, delta.end)

    def _end(self, index: int, end: SequenceEnd) -> bytes:
        nothing = b'"delta":{}' if self._call.is_chat else b'"text":""'
        reasons = orjson.dumps({"logprobs": None, "finish_reason": end.reason, "stop_reason": end.matched})
        return self._prefix(index) + nothing + b"," + reasons[1:] + self._tail

    def closing(self, usage: Usage, timings: Timings) -> bytes:
        """The usage, if it was asked for, and the end."""
        if not self._call.include_usage:
            return DONE
        extra = orjson.dumps({"usage": usage_body(usage), "timings": timings_body(timings)})
        return self._head + b"]," + extra[1:] + b"\n\n" + DONE


def _following(before: Delta, delta: Delta) -> Delta:
    """Two deltas of one choice in one."""
    return Delta(
        delta.request_id,
        delta.index,
        before.text + delta.text,
        delta.token_ids,
        delta.logprobs,
        delta.end,
        before.reasoning + delta.reasoning,
        before.tool_calls + delta.tool_calls,
    )


def error_event(error: ServingError) -> bytes:
    """Ends a stream that fails after it has begun."""
    return b"data: " + orjson.dumps(error_body(error)) + b"\n\n"


class EventStream:
    """One response of events. As a context manager it sends the headers and keeps silence short."""

    def __init__(self, send: Send, encoder: EventEncoder, heartbeat_seconds: float) -> None:
        self._send = send
        self._encoder = encoder
        self._heartbeat_seconds = heartbeat_seconds
        self._loop = asyncio.get_running_loop()
        self._written_at = self._loop.time()
        self._is_blocked = False

    async def __aenter__(self) -> EventStream:
        await self._send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        self._heartbeat = asyncio.create_task(self._beat())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._heartbeat.cancel()

    async def write_deltas(self, deltas: list[Delta]) -> None:
        """The consumer of an exchange."""
        await self.write(self._encoder.deltas(deltas))

    async def write(self, events: bytes) -> None:
        """Send events; waits while the reader is too far behind, which leaves its credits unreturned."""
        if events:
            self._is_blocked = True
            await self._send({"type": "http.response.body", "body": events, "more_body": True})
            self._is_blocked = False
            self._written_at = self._loop.time()

    async def end(self, events: bytes) -> None:
        """Send the last events and end the response."""
        self._heartbeat.cancel()
        await self._send({"type": "http.response.body", "body": events, "more_body": False})

    async def _beat(self) -> None:
        """Send a comment whenever nothing was sent for a while, but not to a reader that is behind."""
        while True:
            wait = self._written_at + self._heartbeat_seconds - self._loop.time()
            if wait <= 0 and not self._is_blocked:
                await self.write(KEEP_ALIVE)
            await asyncio.sleep(wait if wait > 0 else self._heartbeat_seconds)
