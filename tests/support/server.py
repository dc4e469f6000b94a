"""A real server process on a home folder of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

import psutil
from support.wait import until

COMMAND = [sys.executable, "-m", "mlx_serving.frontends.cli.main"]


def environment(home: Path, **settings: object) -> dict[str, str]:
    """The environment of a command on `home`; settings as `http__port=0`."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("MLX_SERVING")}
    kept = {key: os.environ[key] for key in ("MLX_SERVING_NATIVE", "MLX_SERVING_BLAS") if key in os.environ}
    given = {f"MLX_SERVING__{key.upper()}": str(value) for key, value in settings.items()}
    return {**inherited, **kept, "MLX_SERVING_HOME": str(home), **given}


class Server:
    """`mlx-serving serve` as a context manager: started, ready, and gone with all its children afterwards."""

    def __init__(self, home: Path, *, ready: bool = True, **settings: object) -> None:
        self._home = home
        self._ready = ready
        self._environment = environment(home, http__port=0, **settings)
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        self._children: list[psutil.Process] = []

    def __enter__(self) -> Server:
        self.process = subprocess.Popen(
            [*COMMAND, "serve"],
            env=self._environment,
            stdout=self._log,
            stderr=self._log,
            stdin=subprocess.DEVNULL,
        )
        try:
            self.url: str = until(self._announced, seconds=120, what="the address")
            if self._ready:
                until(lambda: self.get("/readyz")[0] == 200 or self._failed(), seconds=120, what="/readyz")
        except BaseException as error:
            text = self.log()
            self.__exit__(None, None, None)
            raise AssertionError(f"the server did not start:\n{text}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._children = self.children() or self._children
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
        _, alive = psutil.wait_procs(self._children, timeout=60)
        for child in alive:
            child.kill()
        text = self.log()
        self._log.close()
        assert not alive, f"processes outlived the server: {alive}\n{text}"

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def children(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def get(self, path: str) -> tuple[int, Any]:
        """Status and body (parsed when it is JSON); status 0 when nobody answers."""
        return self._send(urllib.request.Request(self.url + path))

    def post(self, path: str, body: object, **headers: str) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Content-Type": "application/json", **headers}
        return self._send(urllib.request.Request(self.url + path, data, given))

    def replica_pid(self) -> int:
        """The process that holds the default model, 0 while there is none."""
        status, health = self.get("/health")
        actors = cast(list[dict[str, Any]], health.get("actors", [])) if status in (200, 503) else []
        return next((actor["pid"] for actor in actors if actor["name"].startswith("replica-")), 0)

    def _send(self, request: urllib.request.Request) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, _parsed(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _parsed(error.read())
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return 0, None

    def _failed(self) -> bool:
        assert self.process.poll() is None, f"the server ended:\n{self.log()}"
        return False

    def _announced(self) -> str:
        self._failed()
        path = self._home / "run" / f"server-{self.process.pid}.json"
        found = json.loads(path.read_text()) if path.exists() else {}
        return str(found["urls"][0]) if found.get("urls") else ""


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode(errors="replace")
