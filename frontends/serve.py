"""The server: a runtime with the HTTP frontend, from its first actor to its last."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import attrs

from mlx_serving.actors.logs import configure_logging
from mlx_serving.actors.system import Runtime
from mlx_serving.config.load import Loaded
from mlx_serving.config.schema import Settings
from mlx_serving.config.watch import SettingsWatcher
from mlx_serving.frontends.http.server import HttpServer

Serving = Callable[[str], None]

ANSWER_SECONDS = 1.0
"""After the runtime's deadline, how long connections have to pass on how their streams ended."""


@attrs.frozen
class Watch:
    """How a running server learns of changed settings: read every layer again when a file of `folder` changes."""

    load: Callable[[], Loaded]
    folder: Path


def serve(settings: Settings, home: Path, on_ready: Serving, watch: Watch) -> int:
    """Serve until SIGINT, SIGTERM or a request to stop; the exit status. Call it on the main thread.

    HTTP answers from the start, /readyz by 503 until the default model serves; then `on_ready` gets the URL.
    The first signal drains: no new work, what runs may finish. A second one ends everything at once.
    Raises the ServingError that kept the server from starting or ended it.
    """
    configure_logging(settings.telemetry)
    runtime = Runtime(settings, home)
    runtime.install_signals()
    http: HttpServer | None = None
    stopped = threading.Event()
    try:
        runtime.start()
        http = HttpServer(settings, runtime.door)
        url = http.start()
        runtime.announce((url,))
        _follow(runtime, settings, watch, stopped)
        if runtime.wait_for_model():
            on_ready(url)
        status = runtime.run()
        if runtime.failure is None:
            _drain(runtime, http, settings.supervision.drain_seconds)
    finally:
        stopped.set()
        if http is not None:
            http.stop(0)
        runtime.stop()
    if runtime.failure is not None:
        raise runtime.failure
    return status


def _follow(runtime: Runtime, settings: Settings, watch: Watch, stopped: threading.Event) -> None:
    """Take over live settings from now on, on a thread of its own."""

    def run() -> None:
        for change in SettingsWatcher(settings, watch.load, watch.folder).changes(stopped):
            runtime.apply(change.settings)

    threading.Thread(target=run, name="settings", daemon=True).start()


def _drain(runtime: Runtime, http: HttpServer, seconds: float) -> None:
    """The listener closes and admission refuses what comes by other doors; running requests may finish."""
    intake = threading.Thread(target=http.stop, args=(seconds + ANSWER_SECONDS,), name="http-stop")
    intake.start()
    if not runtime.drain(seconds):
        http.stop(0)
    intake.join()
