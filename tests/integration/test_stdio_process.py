"""The process `mlx-serving stdio`: what is on its streams, and every way in which it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

MODEL = "smollm2-135m"
READY = b"MLX Runtime ready\n"
PATIENCE = 60.0

pytestmark = pytest.mark.integration


class Runtime:
    """A started runtime whose replica says prepared tokens."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self.children: list[psutil.Process] = []
        self.stdin: IO[bytes] = process.stdin
        self.stdout: IO[bytes] = process.stdout

    def send(self, method: str, params: dict[str, Any] | None = None) -> None:
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        self.stdin.write(json.dumps(message).encode() + b"\n")
        self.stdin.flush()

    def receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self.stdout.readline())
        return message

    def until(self, method: str) -> dict[str, Any]:
        while (message := self.receive()).get("method") != method:
            pass
        return message

    def start_stream(self, tokens: int) -> None:
        self.send("load_model", {"model_id": MODEL})
        assert "result" in self.receive()
        params = {"model_id": MODEL, "prompt": "Go on", "max_tokens": tokens, "ignore_eos": True}
        self.send("generate", params)
        assert "result" in self.receive()
        self.until("stream.chunk")
        self.children = psutil.Process(self.process.pid).children(recursive=True)
        assert self.children, "the replica is a process of its own"

    def exit_status(self) -> int:
        return self.process.wait(PATIENCE)


@contextmanager
def started(home: Path, **settings: str) -> Iterator[Runtime]:
    """A runtime that has said that it is ready. Nothing of it is left afterwards."""
    environment = {
        **os.environ,
        "MLX_SERVING_HOME": str(home),
        "MLX_SERVING__GENERATION__ENGINE": "scripted",
        "MLX_SERVING__GENERATION__SCRIPTED_STEP_SECONDS": "0.002",
        **{f"MLX_SERVING__{name}": value for name, value in settings.items()},
    }
    command = (sys.executable, "-m", "mlx_serving.frontends.cli.main", "stdio")
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment) as process:
        try:
            assert process.stderr is not None
            log = list(_until_ready(process.stderr))
            assert log[-1:] == [READY], b"".join(log).decode()
            runtime = Runtime(process)
            yield runtime
            assert psutil.wait_procs(runtime.children, PATIENCE)[1] == [], "the runtime left processes behind"
        finally:
            process.kill()


def _until_ready(lines: IO[bytes]) -> Iterator[bytes]:
    for line in lines:
        yield line
        if line == READY:
            return


def test_the_end_of_stdin_lets_the_stream_finish_and_ends_the_process(serving_home: Path) -> None:
    with started(serving_home) as runtime:
        runtime.start_stream(tokens=200)
        runtime.stdin.close()
        assert runtime.until("stream.event")["params"]["finish_reason"] == "length"
        assert runtime.stdout.read() == b""
        assert runtime.exit_status() == 0


def test_shutdown_is_answered_and_ends_the_process(serving_home: Path) -> None:
    with started(serving_home) as runtime:
        runtime.start_stream(tokens=100_000)
        runtime.send("shutdown")
        assert runtime.until("stream.event")["params"]["code"] == -32800
        assert runtime.receive()["result"] == {"success": True}
        assert runtime.stdout.read() == b""
        assert runtime.exit_status() == 0


def test_a_termination_signal_lets_the_stream_finish(serving_home: Path) -> None:
    with started(serving_home) as runtime:
        runtime.start_stream(tokens=200)
        runtime.process.send_signal(signal.SIGTERM)
        assert runtime.until("stream.event")["params"]["finish_reason"] == "length"
        assert runtime.exit_status() == 0


def test_a_stream_longer_than_the_drain_is_told_its_end(serving_home: Path) -> None:
    with started(serving_home, SUPERVISION__DRAIN_SECONDS="0.3") as runtime:
        runtime.start_stream(tokens=8000)
        runtime.process.send_signal(signal.SIGTERM)
        assert runtime.until("stream.event")["params"]["event"] == "error"
        assert runtime.exit_status() == 0


def test_a_host_that_vanishes_takes_the_runtime_with_it(serving_home: Path) -> None:
    with started(serving_home) as runtime:
        runtime.start_stream(tokens=8000)
        runtime.stdout.close()
        assert runtime.exit_status() == 0


def test_nothing_but_the_protocol_reaches_stdout(serving_home: Path) -> None:
    script = (
        "import os, subprocess, sys\n"
        "from mlx_serving.frontends.serve_stdio import claim_stdio\n"
        "reading, writing = claim_stdio()\n"
        "print('printed', flush=True)\n"
        "os.write(1, b'written')\n"
        "subprocess.run([sys.executable, '-c', 'print(\"by a child\"); print(input())'])\n"
        "os.write(writing, os.read(reading, 100))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=b"from the host",
        capture_output=True,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stdout == b"from the host"
    assert b"printed" in done.stderr
    assert b"written" in done.stderr
    assert b"by a child" in done.stderr
    assert b"EOFError" in done.stderr


def test_a_closed_stdin_is_refused_with_a_reason() -> None:
    command = f"{sys.executable} -m mlx_serving.frontends.cli.main stdio <&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, timeout=PATIENCE, check=False)
    assert done.returncode == 2
    assert b"stdin and stdout must be open" in done.stderr
    assert b"Traceback" not in done.stderr
