"""The supervisor: starts actors in order, watches them, restarts what failed, ends them all.

Rules:
1. Control actors start one after the other, each within its deadline; a replica reports ready when its model is
   loaded. An actor that says why it cannot start is believed.
2. Dead is: its process or thread ended, or `liveness.verdict` says so. A dead process is killed before it is replaced.
3. Admission and batching share the state of the streams, so one never outlives the other: when either dies both
   start anew and learn the replicas again; batching then tells the replicas to drop what they run.
4. Restarts back off and are bounded. A replica that cannot start is given up with its error; a control actor that
   cannot start, or a thread that hangs (nothing ends a thread from outside), ends the runtime.
5. Stopping: admission drains, then admission, batching, replicas, qos and telemetry stop in that order, each with a
   deadline after which it is killed.

One state machine over one table, so it stays in one module although it is long.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mlx_serving.actors import codec
from mlx_serving.actors.base import Node
from mlx_serving.actors.children import Child, Order
from mlx_serving.actors.errors import (
    ActorUnavailable,
    ErrorInfo,
    ModelLoadFailed,
    ServingError,
    StartupFailed,
    describe,
)
from mlx_serving.actors.liveness import Pulse, backoff, verdict
from mlx_serving.actors.members import Member
from mlx_serving.actors.messages.admission import DrainStarted, ReplicaDown, ReplicaUp, SystemObserved
from mlx_serving.actors.messages.supervision import (
    ActorFailed,
    ActorReady,
    ChildExited,
    Drained,
    Heartbeat,
    ModelServes,
    ReplicaReleased,
    ReplicaRequested,
    SettingsChanged,
    Stop,
    StopRequested,
)
from mlx_serving.actors.models.store import ModelStore

CONTROL_ORDER = ("telemetry", "qos", "batching", "admission")
STREAM_OWNERS = ("batching", "admission")
WAIT_SECONDS = 0.1
ABSENCE_SECONDS = 1.0
"""A turn that took longer than this counts as time in which nobody could be heard."""
END_SECONDS = 5.0
"""What one actor gets to tear down before it is killed."""

StartChild = Callable[[Order, Callable[[int], None]], Child]


class Supervisor:
    """Runs on a thread of its own; `post` is the way in from other threads."""

    def __init__(self, node: Node, start_child: StartChild) -> None:
        self._node = node
        self._start_child = start_child
        self._limits = node.settings.supervision
        self._members = {role: Member(role, role) for role in CONTROL_ORDER}
        self._replicas: list[Member] = []
        self._store = ModelStore(node.home)
        self._commands: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._replica_count = 0
        self._draining = False
        self._drain_until = 0.0
        self._ended = False
        self._turned_at = node.clock()
        self._observed: SystemObserved | None = None
        self.forced = threading.Event()
        self.control_ready = threading.Event()
        self.model_serves = threading.Event()
        self.stop_wanted = threading.Event()
        self.finished = threading.Event()
        self.failure: ServingError | None = None

    # --- from other threads -----------------------------------------------------------------------------------------

    def post(self, command: Any) -> None:
        """`DrainStarted` drains, `Stop` ends everything within its seconds, `ChildExited` reports an end."""
        self._commands.put(command)
        self._node.waker.wake()

    def want_stop(self) -> None:
        """Let whoever waits for the runtime know that it should end."""
        self.stop_wanted.set()
        self.model_serves.set()

    def close(self) -> None:
        """For a supervisor that never ran."""
        self._node.close()

    def force(self) -> None:
        """Kill every child now."""
        self.forced.set()
        self._node.waker.wake()

    # --- the loop ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until `Stop`; nothing is left running afterwards."""
        try:
            self._start_control()
            self._start_models()
            codec.prepare()  # while the replicas load
            while not self._ended:
                self._turn()
        except Exception as error:
            self._node.log.exception("supervisor failed")
            self._fail(error if isinstance(error, ServingError) else StartupFailed(f"supervisor: {error}"))
        finally:
            self._end_all(END_SECONDS)
            self._node.close()
            self.finished.set()
            self._wake_waiters()

    def _turn(self) -> None:
        self._node.poller.wait(WAIT_SECONDS)
        self._node.waker.rest()
        self._allow_for_own_absence(self._node.clock())
        commands = []
        while not self._commands.empty():
            commands.append(self._commands.get())
        # What an actor said before it ended comes first: it may be why.
        while (envelope := self._node.inbox.receive()) is not None:
            self._dispatch(envelope.message)
        for command in commands:
            self._dispatch(command)
        now = self._node.clock()
        self._watch(now)
        self._restart_due(now)
        self._observe(now)

    def _allow_for_own_absence(self, now: float) -> None:
        """The time for which this thread stood still (a stopped host, a sleeping machine) is nobody's silence."""
        absent, self._turned_at = now - self._turned_at - WAIT_SECONDS, now
        if absent > ABSENCE_SECONDS:
            for member in self._all():
                member.pulse.last_beat += absent
                member.pulse.progress_at += absent
                member.started_at += absent

    def _dispatch(self, message: Any) -> None:
        match message:
            case Heartbeat(name=name, steps=steps, pending=pending):
                member = self._named(name)
                if member is not None:
                    member.pulse.beat(steps, pending, self._node.clock())
            case ActorReady():
                self._ready(message)
            case ActorFailed(name=name, error=error):
                self._report_failure(name, error)
            case ChildExited():
                self._exited(message)
            case ReplicaRequested(model=model):
                self._request_replicas(model, is_default=False)
            case ReplicaReleased(model=model):
                self._release_replicas(model)
            case ModelServes(model=model):
                if any(member.is_default and member.model and member.model.name == model for member in self._replicas):
                    self.model_serves.set()
            case StopRequested():
                self.want_stop()
            case DrainStarted():
                self._draining, self._drain_until = True, self._node.clock() + message.seconds
                self._node.tell("admission", message)
                self._give_up_returns()
            case SettingsChanged():
                self._node.apply(message)
                for member in self._all():
                    if member.state == "ready":
                        self._node.tell(member.name, message)
            case Drained():
                self._drain_until = 0.0
            case Stop():
                self._ended = True

    # --- starting ---------------------------------------------------------------------------------------------------

    def _start_control(self) -> None:
        for role in CONTROL_ORDER:
            member = self._members[role]
            self._start(member)
            self._await_ready(member)
        self.control_ready.set()

    def _await_ready(self, member: Member) -> None:
        while member.state == "starting" and not self._ended and not self.forced.is_set():
            self._turn()
        if member.state != "ready":
            raise StartupFailed(f"{member.name} did not start: {member.detail or 'interrupted'}")

    def _start_models(self) -> None:
        models = self._node.settings.models
        self._request_replicas(models.default, is_default=True)
        for name in models.preload:
            self._request_replicas(name, is_default=False)

    def _start(self, member: Member) -> None:
        now = self._node.clock()
        if member.is_replica:
            self._replica_count += 1
            member.name = f"replica-{self._replica_count}"
        model = member.model
        order = Order(
            name=member.name,
            kind=member.role,
            book=self._node.place.book,
            settings=self._node.settings,
            home=self._node.home,
            model_path=str(model.path) if model else None,
            model_name=model.name if model else None,
        )
        member.state, member.started_at, member.pulse, member.detail = (
            "starting",
            now,
            Pulse(now, progress_at=now),
            "",
        )
        exited = partial(self._child_exited, member.name)
        member.child = self._start_child(order, exited)

    def _child_exited(self, name: str, status: int) -> None:
        self.post(ChildExited(name, 0, status))

    def _request_replicas(self, model: str, *, is_default: bool) -> None:
        if self._draining:
            error = ActorUnavailable("the server is shutting down", retry_after=5.0, model=model)
            self._node.tell("admission", ReplicaDown("", model, error.message, False, describe(error)))
            return
        trusted = [Path(folder).expanduser() for folder in self._node.settings.models.trusted_folders]
        try:
            record = self._store.resolve(model, trusted)
        except ServingError as error:
            self._node.log.error("model cannot be loaded", model=model, reason=error.message)
            self._node.tell("admission", ReplicaDown("", model, error.message, False, describe(error)))
            if is_default:
                self._fail(error)
            return
        if any(member.model and member.model.name == record.name for member in self._replicas):
            return
        is_default = is_default or record.name == self._node.settings.models.default
        for _ in range(self._node.settings.models.replicas):
            member = Member("replica", "", record, is_default)
            self._replicas.append(member)
            self._start(member)

    def _ready(self, message: ActorReady) -> None:
        member = self._named(message.name)
        if member is None or member.state != "starting":
            return
        member.state = "ready"
        member.pulse.last_beat = member.pulse.progress_at = self._node.clock()
        self._node.log.info("ready", actor=message.name, seconds=round(self._node.clock() - member.started_at, 2))
        if message.model is not None and member.model is not None:
            address = self._node.place.book.of(message.name).ipc
            member.up = ReplicaUp(
                message.name,
                message.model,
                address,
                message.slots,
                message.kv_bytes,
                message.pid,
                member.is_default,
                message.weight_bytes,
                message.memory_bytes,
            )
            self._tell_owners(member.up)
        elif member.role in STREAM_OWNERS:
            self._introduce(member.role)

    def _introduce(self, role: str) -> None:
        """Tell a new admission or batching about every replica that serves."""
        for replica in self._replicas:
            if replica.state == "ready" and replica.up is not None:
                self._node.tell(role, replica.up)
        self._observed = None

    def _tell_owners(self, message: Any) -> None:
        for role in STREAM_OWNERS:
            self._node.tell(role, message)

    # --- watching ---------------------------------------------------------------------------------------------------

    def _all(self) -> list[Member]:
        return [*self._members.values(), *self._replicas]

    def _named(self, name: str) -> Member | None:
        return next((member for member in self._all() if member.name == name), None)

    def _watch(self, now: float) -> None:
        for member in self._all():
            if member.state == "starting":
                allowed = self._limits.load_seconds if member.is_replica else self._limits.ready_seconds
                if now - member.started_at > allowed:
                    self._lost(member, f"not ready within {allowed:.0f} s")
            elif member.state == "stopping" and member.is_replica and now >= member.start_at and member.child:
                member.child.kill()
            elif member.state == "ready":
                reason = verdict(member.pulse, member.is_replica, now, self._limits)
                if reason is not None:
                    self._lost(member, reason)
                elif member.failures and now - member.started_at > self._limits.restart_backoff_max:
                    member.failures = 0

    def _report_failure(self, name: str, error: ErrorInfo) -> None:
        member = self._named(name)
        if member is None or member.state not in ("starting", "ready"):
            return
        if member.is_replica and member.state == "starting":
            if self.failure is None and not self._ends_with(member):  # the host says why the runtime ends
                self._node.log.error("replica cannot start", actor=name, reason=error.message)
            self._give_up(member, error)  # it said why: another try would say the same
        else:
            self._lost(member, error.message)

    def _exited(self, message: ChildExited) -> None:
        member = self._named(message.name)
        if member is not None and member.state in ("starting", "ready"):
            how = f"signal {-message.status}" if message.status < 0 else f"status {message.status}"
            self._lost(member, f"its {member.child.placement if member.child else 'child'} ended ({how})")
        elif member is not None and member.is_replica and member.state == "stopping":
            self._released(member)

    def _lost(self, member: Member, reason: str) -> None:
        """A member is dead: kill what is left of it, tell those concerned, plan its return."""
        self._node.log.error("actor lost", actor=member.name, reason=reason)
        child = member.child
        if child is not None and child.alive():
            child.kill()
            if child.placement == "thread" and not child.join(END_SECONDS):
                self._hangs(member, reason)
                return
        member.failures += 1
        member.restarts += 1
        wait = backoff(member.failures, self._limits)
        member.detail = reason
        if wait is None:
            self._give_up(member, ErrorInfo("actor_unavailable", f"{member.name} failed too often: {reason}"))
            return
        member.state, member.start_at = "backoff", self._node.clock() + wait
        self._tell_lost(member, reason)

    def _hangs(self, member: Member, reason: str) -> None:
        """Nothing ends a thread from outside, and its address stays taken: the runtime ends."""
        member.state, member.detail = "failed", reason
        self._fail(StartupFailed(f"{member.name} hangs: {reason}"))

    def _tell_lost(self, member: Member, reason: str) -> None:
        if member.is_replica:
            assert member.model is not None
            member.up = None
            self._tell_owners(ReplicaDown(member.name, member.model.name, reason, restarting=not self._draining))
            self._node.forget(member.name)
        elif member.role in STREAM_OWNERS:
            self._retire_partner(member)

    def _give_up_returns(self) -> None:
        """Nothing is started while draining: what waits for a replica's return waits in vain."""
        for member in self._replicas:
            if member.state == "backoff" and member.model is not None:
                self._tell_owners(ReplicaDown(member.name, member.model.name, member.detail, restarting=False))

    def _retire_partner(self, member: Member) -> None:
        partner = self._members["admission" if member.role == "batching" else "batching"]
        if partner.state not in ("starting", "ready"):
            return
        partner.state = "stopping"
        if not self._end(partner, END_SECONDS):
            self._hangs(partner, f"it did not end with {member.name}")
            return
        partner.restarts += 1
        partner.state, partner.start_at, partner.detail = (
            "backoff",
            member.start_at,
            f"{member.name} was lost",
        )

    def _give_up(self, member: Member, error: ErrorInfo) -> None:
        member.state, member.detail = "failed", error.message
        if not member.is_replica:
            self._fail(StartupFailed(error.message))
            return
        assert member.model is not None
        if member.child is not None:
            member.child.kill()
        self._tell_owners(ReplicaDown(member.name, member.model.name, error.message, restarting=False, error=error))
        self._replicas.remove(member)
        if self._ends_with(member):
            self._fail(ModelLoadFailed(error.message, model=member.model.name))

    def _ends_with(self, member: Member) -> bool:
        """Whether the runtime ends when this replica is given up."""
        return member.is_default and not self.model_serves.is_set()

    def _restart_due(self, now: float) -> None:
        for member in self._all():
            if member.state == "backoff" and now >= member.start_at and not self._draining:
                self._start(member)

    def _release_replicas(self, model: str) -> None:
        """Ask the model's replicas to end; `_exited` or `_watch` finish it, so that the loop goes on."""
        for member in [each for each in self._replicas if each.model and each.model.name == model]:
            running = member.child is not None and member.child.alive()
            member.start_at = self._node.clock() + END_SECONDS
            self._ask_to_end(member, END_SECONDS)
            if not running:
                self._released(member)

    def _released(self, member: Member) -> None:
        assert member.model is not None
        self._replicas.remove(member)
        self._node.forget(member.name)
        self._tell_owners(ReplicaDown(member.name, member.model.name, "unloaded", restarting=False))

    def _observe(self, now: float) -> None:
        """Tell admission and telemetry about the table when something but an uptime has changed."""
        observed = SystemObserved(tuple(member.observed(now) for member in self._all()), self._draining)
        if self._observed is not None and _same(observed, self._observed):
            return
        self._observed = observed
        self._node.emit(observed)
        if self._members["admission"].state == "ready":
            self._node.tell("admission", observed)

    def _fail(self, error: ServingError) -> None:
        if self.failure is None:
            self.failure = error
        self.stop_wanted.set()
        self._wake_waiters()

    def _wake_waiters(self) -> None:
        for event in (self.control_ready, self.model_serves, self.stop_wanted):
            event.set()

    # --- stopping ---------------------------------------------------------------------------------------------------

    @property
    def drained(self) -> bool:
        """After `DrainStarted`: no stream is left, or the time is over."""
        return self._draining and (self._drain_until == 0.0 or self._node.clock() >= self._drain_until)

    def _end_all(self, seconds: float) -> None:
        control = self._members
        for group in (
            [control["admission"]],
            [control["batching"]],
            self._replicas,
            [control["qos"]],
            [control["telemetry"]],
        ):
            for member in group:
                self._ask_to_end(member, seconds)
            for member in group:
                self._end(member, seconds, asked=True)

    def _ask_to_end(self, member: Member, seconds: float) -> None:
        if member.child is not None and member.child.alive():
            member.state = "stopping"
            self._node.tell(member.name, Stop(0.0 if self.forced.is_set() else seconds))

    def _end(self, member: Member, seconds: float, *, asked: bool = False) -> bool:
        """Wait for a member's end and kill what outlasts it; False for a thread that hangs."""
        child = member.child
        if child is None:
            return True
        if not asked:
            self._ask_to_end(member, seconds)
        ended = self._joined(child, seconds)
        if not ended:
            child.kill()
            ended = child.join(1.0)
        member.state, member.child = "stopped", None
        self._node.forget(member.name)
        return ended

    def _joined(self, child: Child, seconds: float) -> bool:
        """Join, but for a process not longer than until somebody forces the end; a thread cannot be killed."""
        until = self._node.clock() + seconds
        while not child.join(WAIT_SECONDS):
            if self._node.clock() >= until or (self.forced.is_set() and child.placement == "process"):
                return False
        return True


def _same(one: SystemObserved, other: SystemObserved) -> bool:
    def table(observed: SystemObserved) -> list[tuple[Any, ...]]:
        return [(each.name, each.state, each.pid, each.restarts, each.detail) for each in observed.actors]

    return table(one) == table(other) and one.draining == other.draining
