"""The table of actors, and the runtime that a host process embeds."""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import attrs

from mlx_serving.actors import addresses
from mlx_serving.actors.addresses import CONTROL_ACTORS, DOOR, AddressBook
from mlx_serving.actors.base import Actor, Node, Place, socket_options
from mlx_serving.actors.children import Child, Order, ProcessChild, ThreadChild
from mlx_serving.actors.errors import ServingError, StartupFailed
from mlx_serving.actors.generation.engine import Engine
from mlx_serving.actors.messages.admission import DrainStarted
from mlx_serving.actors.messages.supervision import LiveSetting, SettingsChanged, Stop
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.actors.supervisor import END_SECONDS, Supervisor
from mlx_serving.actors.transport import Attachment, Bus
from mlx_serving.config.fields import fields, flatten
from mlx_serving.config.schema import Settings


def _admission(_: Order) -> Actor:
    from mlx_serving.actors.admission.actor import AdmissionActor

    return AdmissionActor()


def _batching(_: Order) -> Actor:
    from mlx_serving.actors.batching.actor import BatchingActor

    return BatchingActor()


def _telemetry(_: Order) -> Actor:
    from mlx_serving.actors.telemetry.actor import TelemetryActor

    return TelemetryActor()


def _qos(_: Order) -> Actor:
    from mlx_serving.actors.qos.actor import QosActor

    return QosActor()


def _replica(order: Order) -> Actor:
    from mlx_serving.actors.generation.actor import GenerationActor

    return GenerationActor(order.name, lambda: _engine(order))


def _engine(order: Order) -> Engine:
    from mlx_serving.actors.models.adapter_store import AdapterStore
    from mlx_serving.actors.models.metadata import describe_folder
    from mlx_serving.actors.models.tokenizer import TextTokenizer

    if order.model_path is None or order.model_name is None:
        raise StartupFailed("a replica needs a model")
    settings = order.settings.generation
    record = describe_folder(Path(order.model_path), order.model_name, source="")
    if settings.engine == "scripted":
        from mlx_serving.actors.generation.scripted import ScriptedEngine

        return ScriptedEngine(record, settings)
    from mlx_serving.native import blas

    blas.install(settings.blas)
    from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine

    if not settings.prefix_cache.directory:
        cache = attrs.evolve(settings.prefix_cache, directory=str(order.home / "state" / "prefix"))
        settings = attrs.evolve(settings, prefix_cache=cache)
    adapters = AdapterStore(order.home, order.settings.models.adapters)
    tokenizer = TextTokenizer.load(record.path)
    return MlxEngine(
        record,
        settings,
        tokenizer,
        find_adapter=lambda identity: adapters.open(record, identity),
        draft=_draft(order),
    )


def _draft(order: Order) -> ModelRecord | None:
    """The draft model, if the replica's is the default model: that is the one it is for."""
    from mlx_serving.actors.models.store import ModelStore

    models, speculation = order.settings.models, order.settings.generation.speculation
    if not speculation.draft_model or speculation.mode not in ("draft", "auto"):
        return None
    store, trusted = ModelStore(order.home), [Path(folder).expanduser() for folder in models.trusted_folders]
    if str(store.resolve(models.default, trusted).path) != order.model_path:
        return None
    return store.resolve(speculation.draft_model, trusted)


ACTORS: dict[str, Callable[[Order], Actor]] = {
    "telemetry": _telemetry,
    "qos": _qos,
    "batching": _batching,
    "admission": _admission,
    "replica": _replica,
}
"""How each kind of actor is made, where it runs; imports happen there, so that a host needs no MLX."""


def make_actor(order: Order) -> Actor:
    return ACTORS[order.kind](order)


class Runtime:
    """The supervisor, the control actors and the replicas, in and under this process."""

    def __init__(self, settings: Settings, home: Path, *, announce: bool = True) -> None:
        """`announce` lets live commands on this home find the runtime."""
        self._settings = settings
        self._home = home
        self._announce = announce
        addresses.sweep(home)
        self._folder = addresses.make_run_folder(home)
        (self._folder / "pid").write_text(str(os.getpid()), encoding="ascii")
        placed = settings.actors
        threads = {name for name in CONTROL_ACTORS if getattr(placed, name, "thread") == "thread"}
        self.book = AddressBook(str(self._folder), frozenset(threads))
        self.bus = Bus(socket_options(settings))
        node = Node(self.bus, Place("supervisor", self.book, in_host=True), settings, home)
        self._supervisor = Supervisor(node, self._start_child)
        self._thread = threading.Thread(target=self._supervisor.run, name="supervisor", daemon=True)
        self._signals: queue.SimpleQueue[int] = queue.SimpleQueue()

    @property
    def door(self) -> Attachment:
        """Where a `Client` in this process connects."""
        return Attachment(self.book.of(DOOR).best(same_process=True), self.bus)

    def start(self, wait_for_model: bool = False) -> None:
        """Return when the control actors are ready, and with `wait_for_model` when the default model serves.

        Raises the ServingError that says why they are not; nothing is left running then.
        """
        self._thread.start()
        self._supervisor.control_ready.wait()
        if wait_for_model:
            self.wait_for_model()
        if self._supervisor.failure is not None:
            failure = self._supervisor.failure
            self.stop()
            raise failure
        if self._announce:
            self.announce(())

    def wait_for_model(self) -> bool:
        """True once the default model serves; False when the runtime fails or is asked to stop before."""
        self._supervisor.model_serves.wait()
        return self._supervisor.failure is None and not self._supervisor.stop_wanted.is_set()

    def announce(self, urls: tuple[str, ...]) -> None:
        """Write down the door and the addresses of the frontends for live commands."""
        addresses.announce(self._home, self.book.of(DOOR).ipc, urls)

    def apply(self, settings: Settings) -> None:
        """Go on with the live settings of `settings`; the others keep their running values."""
        known, old, new = fields(), flatten(self._settings), flatten(settings)
        changed = [LiveSetting(key, str(new[key])) for key in known if known[key].live and old[key] != new[key]]
        if changed:
            self._settings = settings
            self._supervisor.post(SettingsChanged(tuple(changed)))

    def install_signals(self) -> None:
        """SIGINT and SIGTERM ask `run` to return; a second one kills every child. Main thread only."""
        threading.Thread(target=self._heed_signals, name="signals", daemon=True).start()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._signalled)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        """Only what is safe wherever the main thread was interrupted: this queue takes no lock of ours."""
        self._signals.put(number)

    def _heed_signals(self) -> None:
        self._signals.get()
        self._supervisor.want_stop()
        self._signals.get()
        self._supervisor.force()

    def run(self) -> int:
        """Block until somebody asks to stop; the exit status that the process should end with."""
        while not self._supervisor.stop_wanted.wait(1.0):
            pass
        failure = self._supervisor.failure
        return 0 if failure is None else failure.exit_status

    @property
    def failure(self) -> ServingError | None:
        """Why `run` returned without having been asked to."""
        return self._supervisor.failure

    def drain(self, seconds: float | None = None) -> bool:
        """Take no new requests; return when the running ones have ended or `seconds` are over.

        False when a second signal cut it short.
        """
        allowed = self._settings.supervision.drain_seconds if seconds is None else seconds
        supervisor = self._supervisor
        supervisor.post(DrainStarted(allowed))
        while not (supervisor.drained or supervisor.forced.is_set() or supervisor.finished.wait(0.02)):
            pass
        return not supervisor.forced.is_set()

    def stop(self) -> None:
        """End every actor, whoever still waits gets a typed error, and remove the sockets. Idempotent."""
        if self._thread.ident is None:
            self._supervisor.close()
        else:
            self._supervisor.post(Stop(END_SECONDS))
            self._thread.join()
        if self._announce:
            addresses.withdraw(self._home)
        self.bus.close()
        addresses.remove_run_folder(self._folder)

    def _start_child(self, order: Order, exited: Callable[[int], None]) -> Child:
        if order.name in self.book.threads:
            return ThreadChild(make_actor(order), order, self.bus, os.getpid(), exited)
        return ProcessChild(order, exited)
