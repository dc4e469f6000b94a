"""Reads one HTTP/1.1 response out of the segments in which it arrived, each with its arrival time.

It runs after the load has ended: while the load runs, segments are only recorded.
"""

from __future__ import annotations

from typing import Any

import attrs
import orjson

TERMINATOR = b"\r\n0\r\n\r\n"
"""How a chunked body ends. JSON has no raw line breaks, so nothing inside an event looks like it."""


@attrs.frozen
class Head:
    """Status line and header fields, their names in lower case."""

    status: int
    version: bytes
    fields: dict[bytes, bytes]
    length: int

    @classmethod
    def read(cls, data: bytes) -> Head | None:
        """None while the head is incomplete; `length` is its number of bytes."""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return None
        first, *lines = data[:end].split(b"\r\n")
        version, status, *_ = first.split(b" ", 2)
        pairs = (line.split(b":", 1) for line in lines if b":" in line)
        fields = {name.strip().lower(): value.strip() for name, value in pairs}
        return cls(int(status), version, fields, end + 4)

    @property
    def chunked(self) -> bool:
        """The body comes in chunks."""
        return b"chunked" in self.fields.get(b"transfer-encoding", b"").lower()

    @property
    def body_length(self) -> int | None:
        """Bytes of the body, None when its end is told otherwise."""
        value = self.fields.get(b"content-length")
        return int(value) if value is not None else None

    @property
    def reusable(self) -> bool:
        """The connection may carry another request."""
        closing = b"close" in self.fields.get(b"connection", b"").lower()
        return self.version == b"HTTP/1.1" and not closing and (self.chunked or self.body_length is not None)


@attrs.define
class Answer:
    """A response in the making: feed it segments in order, then look at the fields."""

    head: Head | None = None
    times: list[float] = attrs.field(factory=list)
    """Arrival of each event that carried text."""
    pieces: dict[int, list[str]] = attrs.field(factory=dict)
    """Text of each choice, by index, as it came."""
    logprobs: list[dict[str, Any]] = attrs.field(factory=list)
    usage: dict[str, Any] | None = None
    finish_reason: str | None = None
    done: bool = False
    failure: str = ""
    """What an error event or an error body said."""
    _raw: bytes = b""
    _body: bytes = b""

    def feed(self, time: float, data: bytes) -> None:
        """The bytes that arrived at `time` (seconds)."""
        self._raw += data
        if self.head is None:
            self.head = Head.read(self._raw)
            if self.head is None:
                return
            self._raw = self._raw[self.head.length :]
        if self.head.chunked:
            self._unchunk()
        else:
            self._body, self._raw = self._body + self._raw, b""
        if self.streams:
            *events, self._body = self._body.replace(b"\r\n", b"\n").split(b"\n\n")
            for event in events:
                self._event(time, event)

    def end(self) -> None:
        """No more bytes will come: reads a body that is no event stream."""
        if self.head is None or self.streams or not self._body:
            return
        try:
            document = orjson.loads(self._body)
        except orjson.JSONDecodeError:
            self.failure = self._body[:200].decode(errors="replace")
            return
        if self.head.status == 200:
            self._take(0.0, document)
            self.done = True
        else:
            self.failure = str(document.get("error", document))

    @property
    def streams(self) -> bool:
        """The body is a stream of events."""
        return self.head is not None and b"event-stream" in self.head.fields.get(b"content-type", b"")

    def _unchunk(self) -> None:
        raw, position, parts = self._raw, 0, [self._body]
        while (line := raw.find(b"\r\n", position)) >= 0:
            size = int(raw[position:line].split(b";")[0], 16)
            if line + 2 + size + 2 > len(raw):
                break
            parts.append(raw[line + 2 : line + 2 + size])
            position = line + 2 + size + 2
        self._raw, self._body = raw[position:], b"".join(parts)

    def _event(self, time: float, event: bytes) -> None:
        if not event.startswith(b"data:"):
            return
        data = event[5:].lstrip()
        if data == b"[DONE]":
            self.done = True
            return
        self._take(time, orjson.loads(data))

    def _take(self, time: float, document: dict[str, Any]) -> None:
        if "error" in document:
            self.failure = str(document["error"])
        self.usage = document.get("usage") or self.usage
        for choice in document.get("choices", ()):
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            text = (choice.get("delta") or choice.get("message") or {}).get("content") or choice.get("text")
            if text:
                self.times.append(time)
                self.pieces.setdefault(choice.get("index", 0), []).append(text)
            logprobs = choice.get("logprobs")
            if logprobs:
                self.logprobs.extend(logprobs.get("content") or ())
