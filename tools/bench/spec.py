"""What the load generator is told to do and what it tells back; both cross a process border as JSON."""

from __future__ import annotations

from typing import Any

import attrs

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


@attrs.frozen
class Request:
    """One request. Counts are SSE events, times seconds.

    After `cancel_after` events the connection is closed. After `pause_after` events nothing is read for
    `pause_seconds`; such a request gets the smallest receive buffer, so that the server feels it.
    """

    body: dict[str, Any]
    path: str = CHAT
    cancel_after: int | None = None
    pause_after: int | None = None
    pause_seconds: float = 0.0


@attrs.frozen
class Load:
    """Requests and their rhythm.

    Closed loop: `clients` connections, each sends its next request when the last one ended. Open loop: `rate`
    requests a second with exponential gaps drawn from `seed`, whatever the server does. `tick` is a pause
    between two rounds of reading: fewer wake-ups, and arrival times that are late by up to as much.
    """

    host: str
    port: int
    requests: tuple[Request, ...]
    clients: int = 1
    rate: float | None = None
    seed: int = 0
    timeout: float = 600.0
    tick: float = 0.0
    keep_times: bool = False
    api_key: str = ""

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Load:
        """The inverse of `attrs.asdict`."""
        requests = tuple(Request(**request) for request in fields["requests"])
        return cls(**{**fields, "requests": requests})


@attrs.frozen
class Outcome:
    """How one request went. Times in seconds; `started` on the machine's monotonic clock.

    `error` is a kind (connect, status 429, truncated, stream, timeout), None for a complete answer;
    `cancelled` is an answer that was left on purpose. `tokens` come from the server's usage. `times` are
    those of content events.
    """

    index: int
    started: float
    ended: float
    status: int = 0
    error: str | None = None
    cancelled: bool = False
    prompt_tokens: int | None = None
    tokens: int | None = None
    finish_reason: str | None = None
    first: float | None = None
    last: float | None = None
    events: int = 0
    gaps: tuple[float, ...] = ()
    texts: tuple[str, ...] = ()
    """Of each choice."""
    logprobs: tuple[dict[str, Any], ...] = ()
    times: tuple[float, ...] = ()
    paused_at: float | None = None
    detail: str = ""

    @property
    def text(self) -> str:
        """Of the first choice."""
        return self.texts[0] if self.texts else ""
