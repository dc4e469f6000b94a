"""One line of the supervisor's table: an actor that must run, and the child that runs it now."""

from __future__ import annotations

from typing import Literal

import attrs

from mlx_serving.actors.children import Child
from mlx_serving.actors.liveness import Pulse
from mlx_serving.actors.messages.admission import ActorState, ReplicaUp
from mlx_serving.actors.models.record import ModelRecord

State = Literal["starting", "ready", "backoff", "stopping", "failed", "stopped"]


@attrs.define(eq=False)
class Member:
    """`role` is the kind of actor; a replica also has its model. `name` changes with every start of a replica."""

    role: str
    name: str
    model: ModelRecord | None = None
    is_default: bool = False
    state: State = "stopped"
    child: Child | None = None
    pulse: Pulse = attrs.field(factory=lambda: Pulse(0.0))
    started_at: float = 0.0
    failures: int = 0
    """Starts that failed since it last ran well."""
    restarts: int = 0
    start_at: float = 0.0
    """When to start again, in state `backoff`; when to kill, in state `stopping`."""
    detail: str = ""
    up: ReplicaUp | None = None

    @property
    def is_replica(self) -> bool:
        return self.role == "replica"

    def observed(self, now: float) -> ActorState:
        label = f"{self.name} ({self.model.name})" if self.model else self.name
        running = self.child is not None and self.state in ("starting", "ready", "stopping")
        return ActorState(
            name=label,
            state="starting" if self.state == "backoff" else "stopped" if self.state == "stopping" else self.state,
            placement=self.child.placement if self.child else "",
            pid=self.child.pid if self.child and running else 0,
            restarts=self.restarts,
            uptime=max(0.0, now - self.started_at) if running else 0.0,
            detail=self.detail,
        )
