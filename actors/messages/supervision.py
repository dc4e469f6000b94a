"""What the supervisor is told, and the one thing it tells every actor."""

from __future__ import annotations

import attrs

from mlx_serving.actors.errors import ErrorInfo
from mlx_serving.actors.messages.values import ModelInfo


@attrs.frozen
class ActorReady:
    """Set-up succeeded. A replica adds its model, what it can hold, and bytes of its weights and of its device."""

    name: str
    pid: int
    model: ModelInfo | None = None
    slots: int = 0
    kv_bytes: int = 0
    weight_bytes: int = 0
    memory_bytes: int = 0


@attrs.frozen
class ActorFailed:
    """Set-up failed, or the loop broke."""

    name: str
    error: ErrorInfo


@attrs.frozen
class Heartbeat:
    """Sent between turns of the loop. `steps` counts completed steps, `pending` what waits for one."""

    name: str
    steps: int
    pending: int


@attrs.frozen
class ReplicaRequested:
    """Admission wants a replica of a stored model; loads of one model that is on its way coalesce."""

    model: str


@attrs.frozen
class ReplicaReleased:
    """Admission wants every replica of the model stopped: its streams have ended."""

    model: str


@attrs.frozen
class StopRequested:
    """A frontend asked for a shutdown."""


@attrs.frozen
class Stop:
    """Finish or abort within `seconds`, tear down, exit."""

    seconds: float


@attrs.frozen
class ChildExited:
    """A child process ended (posted by the thread that waits for it)."""

    name: str
    pid: int
    status: int


@attrs.frozen
class Drained:
    """Admission has no stream left since `DrainStarted`."""


@attrs.frozen
class ModelServes:
    """Admission routes to the model from now on."""

    model: str


@attrs.frozen
class LiveSetting:
    """One setting that a running server takes over: its dotted key, and its value as an environment variable
    would hold it."""

    key: str
    value: str


@attrs.frozen
class SettingsChanged:
    """The supervisor tells every actor about changed live settings."""

    settings: tuple[LiveSetting, ...]
