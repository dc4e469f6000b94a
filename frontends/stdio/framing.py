"""Messages out of a byte stream and into it, in the two framings of JSON-RPC hosts.

1. The first byte that is not white space tells them apart: `C` or `c` begins a `Content-Length` header,
   anything else is newline-delimited JSON.
2. A message may have at most `limit` bytes. A larger one is never kept: it passes by, and its id is read.
3. What is not framed is reported once, and skipped up to the next line or the next `Content-Length`.
4. How the stream is cut into pieces makes no difference.
"""

from __future__ import annotations

import re
from typing import Protocol

import attrs

from mlx_serving.frontends.stdio.oversize import Skimmed
from mlx_serving.frontends.stdio.rpc import RequestId

_HEADER_BYTES = 8 << 10
"""Largest block of headers."""
_NEXT_LENGTH = re.compile(rb"content-length[ \t]{0,8}:[ \t]{0,8}(\d{1,15})[ \t]{0,8}\r?\n", re.IGNORECASE)
_NEXT_LENGTH_BYTES = 64
"""More than `_NEXT_LENGTH` can match."""
_HEADER = re.compile(rb"([A-Za-z][A-Za-z0-9-]*)[ \t]*:[ \t]*(.*)", re.DOTALL)
_LENGTH_NAME = b"content-length"
_LENGTH = re.compile(rb"\d{1,15}")


@attrs.frozen
class Malformed:
    """Bytes that are no message, skipped."""

    reason: str


@attrs.frozen
class Oversize:
    """A message over the limit, skipped; its id, if that could be read."""

    limit: int
    request_id: RequestId | None


Incoming = bytes | Malformed | Oversize


class Framing(Protocol):
    """One framing, in both directions."""

    def feed(self, data: bytes) -> list[Incoming]:
        """What is complete now that `data` has arrived."""
        ...

    def end(self) -> list[Incoming]:
        """What is complete now that nothing more comes."""
        ...

    def encode(self, body: bytes) -> bytes:
        """`body`, as it is written to the host."""
        ...


class LineFraming:
    """One JSON text a line; blank lines mean nothing, and the last line may lack its end."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._line = bytearray()
        self._skimmed: Skimmed | None = None

    def feed(self, data: bytes) -> list[Incoming]:
        *ended, rest = data.split(b"\n")
        incoming: list[Incoming] = []
        for part in ended:
            self._take(part)
            incoming += self.end()
        self._take(rest)
        return incoming

    def end(self) -> list[Incoming]:
        skimmed, self._skimmed = self._skimmed, None
        if skimmed is not None:
            return [Oversize(self._limit, skimmed.request_id())]
        line = bytes(self._line).strip()
        self._line.clear()
        return [line] if line else []

    def encode(self, body: bytes) -> bytes:
        return body + b"\n"

    def _take(self, part: bytes) -> None:
        if self._skimmed is None and len(self._line) + len(part) > self._limit:
            self._skimmed = Skimmed()
            self._skimmed.take(self._line)
            self._line.clear()
        if self._skimmed is not None:
            self._skimmed.take(part)
        else:
            self._line += part


class HeaderFraming:
    """`Content-Length: N`, perhaps other headers, an empty line, and N bytes of JSON."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._headers = 0
        """Bytes of the block of headers that is being read."""
        self._length: int | None = None
        self._state = self._read_header
        self._skimmed = Skimmed()

    def feed(self, data: bytes) -> list[Incoming]:
        self._buffer += data
        incoming: list[Incoming] = []
        while self._state(incoming):
            pass
        return incoming

    def end(self) -> list[Incoming]:
        within = (self._buffer or self._headers) and self._state != self._find_header
        return [Malformed("the stream ended within a message")] if within else []

    def encode(self, body: bytes) -> bytes:
        return b"Content-Length: %d\r\n\r\n%b" % (len(body), body)

    # Each state takes what it can from the buffer and says whether it got on; False waits for more bytes.

    def _read_header(self, incoming: list[Incoming]) -> bool:
        end = self._buffer.find(b"\n") + 1
        if self._headers + (end or len(self._buffer)) > _HEADER_BYTES:
            return self._lose(incoming, f"headers of more than {_HEADER_BYTES} bytes")
        if not end:
            return False
        line = bytes(self._buffer[:end]).strip()
        if line and (problem := self._take_header(line)):
            return self._lose(incoming, problem)
        del self._buffer[:end]
        if line:
            self._headers += end
        elif self._length is not None:
            self._begin_body(self._length)
        elif self._headers:
            return self._lose(incoming, "headers without Content-Length")
        return True

    def _take_header(self, line: bytes) -> str:
        """Note the length, if the line has it; returns what is wrong with the line."""
        header = _HEADER.fullmatch(line)
        name = header[1].lower() if header else b""
        if header is None or (name != _LENGTH_NAME and name.endswith(_LENGTH_NAME)):
            return "a line that is no header"  # in the second case one with something stuck to its front
        if name != _LENGTH_NAME:
            return ""
        if not _LENGTH.fullmatch(header[2]):
            return "a Content-Length that is no number"
        self._length = int(header[2])
        return ""

    def _lose(self, incoming: list[Incoming], reason: str) -> bool:
        incoming.append(Malformed(reason))
        self._headers, self._length = 0, None
        self._state = self._find_header
        return True

    def _find_header(self, incoming: list[Incoming]) -> bool:
        found = _NEXT_LENGTH.search(self._buffer)
        if found is None:
            del self._buffer[:-_NEXT_LENGTH_BYTES]
            return False
        self._length, self._headers = int(found[1]), found.end() - found.start()
        del self._buffer[: found.end()]
        self._state = self._read_header
        return True

    def _begin_body(self, length: int) -> None:
        self._headers = 0
        self._state = self._read_body if length <= self._limit else self._pass_body

    def _read_body(self, incoming: list[Incoming]) -> bool:
        length = self._length or 0
        if len(self._buffer) < length:
            return False
        incoming.append(bytes(self._buffer[:length]))
        del self._buffer[:length]
        return self._end_body()

    def _pass_body(self, incoming: list[Incoming]) -> bool:
        length = self._length or 0
        part = self._buffer[:length]
        self._skimmed.take(part)
        del self._buffer[: len(part)]
        self._length = length - len(part)
        if self._length:
            return False
        incoming.append(Oversize(self._limit, self._skimmed.request_id()))
        self._skimmed = Skimmed()
        return self._end_body()

    def _end_body(self) -> bool:
        self._length, self._state = None, self._read_header
        return True


class Framer:
    """The framing of one host, found out from the first byte it sends.

    `limit` bounds what comes in, `line_limit` a line that goes out, both in bytes.
    """

    def __init__(self, limit: int, line_limit: int) -> None:
        self._limit = limit
        self._line_limit = line_limit
        self._framing: Framing | None = None

    @property
    def line_limit(self) -> int | None:
        """Largest message that the host takes, its line end included; None if there is no limit."""
        return None if isinstance(self._framing, HeaderFraming) else self._line_limit

    def feed(self, data: bytes) -> list[Incoming]:
        if self._framing is None:
            data = data.lstrip()
            if not data:
                return []
            kind = HeaderFraming if data[:1] in b"Cc" else LineFraming
            self._framing = kind(self._limit)
        return self._framing.feed(data)

    def end(self) -> list[Incoming]:
        return self._framing.end() if self._framing else []

    def encode(self, body: bytes) -> bytes:
        return (self._framing or LineFraming(self._limit)).encode(body)
