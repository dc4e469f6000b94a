"""One request on one connection while the load runs: it records what arrives and notices where it ends."""

from __future__ import annotations

import socket
from itertools import pairwise
from time import monotonic

import attrs
import orjson

from tools.bench.answer import TERMINATOR, Answer, Head
from tools.bench.spec import Load, Outcome, Request

_READ = 1 << 16
_SMALL_BUFFER = 4096


def connect(load: Load, small: bool = False) -> socket.socket:
    """A connection to the server; OSError when there is none. `small` asks for the smallest receive
    buffer."""
    connection = socket.socket()
    try:
        if small:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(load.timeout)
        connection.connect((load.host, load.port))
    except OSError:
        connection.close()
        raise
    return connection


def _message(load: Load, request: Request) -> bytes:
    body = orjson.dumps(request.body)
    key = f"Authorization: Bearer {load.api_key}\r\n" if load.api_key else ""
    head = (
        f"POST {request.path} HTTP/1.1\r\nHost: {load.host}:{load.port}\r\n{key}"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@attrs.define(eq=False)
class Exchange:
    """The request, its connection, and the segments received so far, each with its arrival time."""

    index: int
    request: Request
    load: Load
    connection: socket.socket
    started: float = 0.0
    ended: float = 0.0
    segments: list[bytes] = attrs.field(factory=list)
    times: list[float] = attrs.field(factory=list)
    head: Head | None = None
    error: str | None = None
    cancelled: bool = False
    paused_at: float | None = None
    events: int = 0
    _received: int = 0
    _tail: bytes = b""

    def send(self) -> None:
        """Write the request; the clock starts here. OSError when the server does not take it."""
        message = _message(self.load, self.request)
        self.connection.settimeout(self.load.timeout)
        self.started = monotonic()
        self.connection.sendall(message)
        self.connection.setblocking(False)

    def receive(self) -> bool:
        """Take what has arrived; True when nothing more will be read."""
        try:
            data = self.connection.recv(_READ)
        except BlockingIOError:
            return False
        except OSError:
            return self.end("reset")
        now = monotonic()
        if not data:
            return self.end(None)
        self.segments.append(data)
        self.times.append(now)
        self._received += len(data)
        return self._complete(data) or self._gives_up(data)

    def end(self, error: str | None) -> bool:
        """Nothing more will be read; always True."""
        self.ended, self.error = monotonic(), error
        return True

    def _complete(self, data: bytes) -> bool:
        if self.head is None:
            data = b"".join(self.segments)
            self.head = Head.read(data)
            if self.head is None:
                return False
        if self.head.chunked:
            self._tail = (self._tail + data)[-len(TERMINATOR) :]
            return self._tail == TERMINATOR and self.end(None)
        length = self.head.body_length
        return length is not None and self._received >= self.head.length + length and self.end(None)

    def _gives_up(self, data: bytes) -> bool:
        """Counts events only for a request that will be left or paused after some number of them."""
        after = self.request.cancel_after
        if after is None and self.request.pause_after is None:
            return False
        self.events += data.count(b"data:")
        if after is not None and self.events >= after:
            self.cancelled = True
            return self.end(None)
        return False

    @property
    def wants_pause(self) -> bool:
        """The moment has come at which this reader stops reading."""
        after = self.request.pause_after
        return after is not None and self.paused_at is None and self.events >= after

    @property
    def reusable(self) -> bool:
        """The connection may carry the next request."""
        return self.error is None and not self.cancelled and self.head is not None and self.head.reusable

    def outcome(self) -> Outcome:
        """Parse what was recorded."""
        answer = Answer()
        for time, data in zip(self.times, self.segments, strict=True):
            answer.feed(time, data)
        answer.end()
        return _outcome(self, answer)


def _outcome(exchange: Exchange, answer: Answer) -> Outcome:
    usage = answer.usage or {}
    times = answer.times if answer.streams else []
    error = exchange.error or _error(exchange, answer)
    return Outcome(
        index=exchange.index,
        started=exchange.started,
        ended=exchange.ended,
        status=answer.head.status if answer.head else 0,
        error=error,
        cancelled=exchange.cancelled,
        prompt_tokens=usage.get("prompt_tokens"),
        tokens=usage.get("completion_tokens"),
        finish_reason=answer.finish_reason,
        first=times[0] - exchange.started if times else None,
        last=times[-1] - exchange.started if times else None,
        events=len(times),
        gaps=tuple(later - earlier for earlier, later in pairwise(times)),
        texts=tuple("".join(answer.pieces[index]) for index in sorted(answer.pieces)),
        logprobs=tuple(answer.logprobs),
        times=tuple(times) if exchange.load.keep_times else (),
        paused_at=exchange.paused_at,
        detail=answer.failure,
    )


def _error(exchange: Exchange, answer: Answer) -> str | None:
    if exchange.cancelled:
        return None
    if answer.head is None:
        return "truncated"
    if answer.head.status != 200:
        return f"status {answer.head.status}"
    if answer.failure:
        return "stream"
    return None if answer.done else "truncated"
