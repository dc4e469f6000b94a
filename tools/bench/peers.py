"""Servers under test as processes: started on a free port, awaited, always ended with all their children."""

from __future__ import annotations

import http.client
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import attrs
import psutil

from tools.bench import load
from tools.bench.spec import Load, Outcome, Request

_BLAS_FIRST = "from mlx_serving.native import blas; blas.install(); from mlx_lm.server import main; main()"


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@attrs.frozen
class Recipe:
    """How one kind of server is started. `{port}` in the command is filled in.

    `ready` is the path that answers 200 once it serves; `model` is what requests name. `extras` are body
    fields that only this server understands. It decodes at most `slots` answers at once.
    """

    name: str
    command: tuple[str, ...]
    ready: str
    model: str
    environment: dict[str, str] = attrs.field(factory=dict)
    extras: dict[str, Any] = attrs.field(factory=dict)
    slots: float = math.inf


def ours(model: str, settings: Mapping[str, str] | None = None) -> Recipe:
    """This server. `settings`: environment names without their prefix, such as GENERATION__ENGINE, and
    values."""
    environment = {f"MLX_SERVING__{key}": value for key, value in (settings or {}).items()}
    program = (sys.executable, "-m", "mlx_serving.frontends.cli.main")
    command = (*program, "serve", model, "--host", "127.0.0.1", "--port", "{port}")
    return Recipe("mlx-serving", command, "/readyz", model, environment)


def mlx_lm_server(folder: Path, blas: bool = False) -> Recipe:
    """mlx_lm's own server on a model folder; with `blas`, under the BLAS that this server uses."""
    program = ("-c", _BLAS_FIRST) if blas else ("-m", "mlx_lm.server")
    options = ("--model", str(folder), "--host", "127.0.0.1", "--port", "{port}", "--log-level", "WARNING")
    name = "mlx_lm.server with OpenBLAS" if blas else "mlx_lm.server"
    return Recipe(name, (sys.executable, *program, *options), "/health", "default_model")


def llama_server(binary: Path, gguf: Path, slots: int = 8) -> Recipe:
    """llama.cpp's server on a GGUF file."""
    options = ("-m", str(gguf), "--host", "127.0.0.1", "--port", "{port}", "-np", str(slots))
    return Recipe("llama-server", (str(binary), *options), "/health", "default", slots=slots)


@attrs.define(eq=False)
class Server:
    """A running server; use it as a context manager. Its output goes to `log`."""

    recipe: Recipe
    log: Path
    ready_seconds: float = 600.0
    port: int = attrs.field(factory=free_port)
    time_to_ready: float = 0.0
    _process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        command = [part.replace("{port}", str(self.port)) for part in self.recipe.command]
        started = time.monotonic()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            environment = {**os.environ, **self.recipe.environment}
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        try:
            self._await_ready(started + self.ready_seconds)
        except BaseException:
            self.stop()
            raise
        self.time_to_ready = time.monotonic() - started
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def process(self) -> psutil.Process:
        """The process that was started; its children are found through it."""
        assert self._process is not None, "the server is not running"
        return psutil.Process(self._process.pid)

    def _await_ready(self, deadline: float) -> None:
        assert self._process is not None
        while self.get(self.recipe.ready) != 200:
            if self._process.poll() is not None:
                raise RuntimeError(
                    f"{self.recipe.name} ended with status {self._process.returncode}: {self._last_words()}"
                )
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{self.recipe.name} was not ready in {self.ready_seconds:.0f} s: {self._last_words()}"
                )
            time.sleep(0.02)

    def get(self, path: str) -> int:
        """The status of a GET; 0 when nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    def _last_words(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]

    def load(self, requests: Sequence[Request], **options: Any) -> Load:
        """A load for this server: fills in its address, its model's name and its own body fields."""
        filled = tuple(
            attrs.evolve(request, body={"model": self.recipe.model, **self.recipe.extras, **request.body})
            for request in requests
        )
        return Load("127.0.0.1", self.port, filled, **options)

    def drive(self, requests: Sequence[Request], deadline: float = 3600.0, **options: Any) -> list[Outcome]:
        """Send `requests` from a generator process and wait for all outcomes."""
        return load.run(self.load(requests, **options), deadline)

    def stop(self, patience: float = 20.0) -> None:
        """Ask it to end, then end it and every descendant by force."""
        if self._process is None:
            return
        process, self._process = self._process, None
        try:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            family = []
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for survivor in psutil.wait_procs(family, timeout=2.0)[1]:
            survivor.kill()
