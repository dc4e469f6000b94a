"""A streaming request over a plain connection, read event by event."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit


class EventStream:
    """One POST whose answer is read as server-sent events."""

    def __init__(self, url: str, path: str, body: dict[str, Any], *, timeout: float = 120.0) -> None:
        address = urlsplit(url)
        self._connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=timeout)
        self._connection.request(
            "POST", path, json.dumps({**body, "stream": True}), {"Content-Type": "application/json"}
        )
        self.response = self._connection.getresponse()

    def __enter__(self) -> EventStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up, read or not."""
        self.response.close()
        self._connection.close()

    def events(self) -> Iterator[dict[str, Any]]:
        """Every event up to [DONE] or the end of the body."""
        for line in self.response:
            if line.startswith(b"data: {"):
                yield json.loads(line[6:])
            elif line.startswith(b"data: [DONE]"):
                return

    def next_event(self) -> dict[str, Any]:
        return next(self.events())


def text_of(events: list[dict[str, Any]]) -> str:
    """The text of choice 0 of a streamed chat or completion."""
    parts = []
    for event in events:
        for choice in event.get("choices", []):
            if choice["index"] == 0:
                parts.append(choice.get("text") or choice.get("delta", {}).get("content") or "")
    return "".join(parts)
