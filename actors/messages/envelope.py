"""The envelope: delivery data around every message."""

from __future__ import annotations

from typing import Any

from mlx_serving.actors.messages.hot import hot

PROTOCOL_VERSION = 1
"""Version of the wire protocol of docs/protocol.md; a frame with another version is refused."""


@hot
class Envelope:
    """One message and how it travels.

    `sender` is the actor's name. `correlation` pairs an answer with its question (0: no answer expected).
    `deadline` is in seconds of the machine's monotonic clock; after it nobody waits for the answer. `trace_id`
    follows one request through every actor.
    """

    message: Any
    sender: str = ""
    correlation: int = 0
    deadline: float | None = None
    trace_id: str = ""
