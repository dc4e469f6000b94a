"""The id of a message that is too large to keep, read from its first and its last bytes as it passes by."""

from __future__ import annotations

import json
import re

from mlx_serving.frontends.stdio.rpc import RequestId, is_id

_HEAD_BYTES = 64 << 10
_TAIL_BYTES = 4 << 10

_SPACE = re.compile(r"[ \t\r\n]*")
_LAST_ID = re.compile(
    rb',\s*"id"\s*:\s*("(?:[^"\\]|\\.)*"|-?\d+)\s*(?:,\s*"(?:jsonrpc|method)"\s*:\s*"[^"\\]*"\s*)*\}\s*$'
)
"""An id at the end of an object. Quotes in a string are escaped: no string's content looks like this."""


class Skimmed:
    """Keeps the two ends of what passes."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._tail = bytearray()

    def take(self, data: bytes | bytearray | memoryview) -> None:
        self._head += data[: max(0, _HEAD_BYTES - len(self._head))]
        self._tail += data[-_TAIL_BYTES:]
        del self._tail[:-_TAIL_BYTES]

    def request_id(self) -> RequestId | None:
        """The id, if it stands among the first members or at the end; None if it cannot be read."""
        found = _leading_id(self._head.decode("utf-8", "ignore"))
        return found if found is not None else _trailing_id(bytes(self._tail))


def _leading_id(text: str) -> RequestId | None:
    scan = json.JSONDecoder().raw_decode
    try:
        position = _after(text, 0, "{")
        while True:
            key, position = scan(text, position)
            position = _after(text, position, ":")
            value, position = scan(text, position)
            position = _after(text, position, ",}")
            if key == "id":
                return value if is_id(value) else None
    except (ValueError, IndexError, RecursionError):
        return None


def _after(text: str, position: int, wanted: str) -> int:
    """Where the next value begins, behind one of the `wanted` characters."""
    position = _SPACE.match(text, position).end()  # type: ignore[union-attr]  # it matches everywhere
    if text[position] not in wanted:
        raise ValueError(position)
    return _SPACE.match(text, position + 1).end()  # type: ignore[union-attr]


def _trailing_id(tail: bytes) -> RequestId | None:
    found = _LAST_ID.search(tail)
    try:
        value = json.loads(found.group(1)) if found else None
    except ValueError:
        return None
    return value if is_id(value) else None
