"""Starts `mlx-serving serve`, waits until it is ready, asks one question and prints the streamed answer.

Needs the standard library only, and `mlx-serving` beside the Python that runs it. Serves on until a signal
when standard input is a terminal and `--once` was not given; otherwise stops the server and ends.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

MODEL = "smollm2-135m"
QUESTION = "What is the capital of France?"
READY_SECONDS = 180.0
STOP_SECONDS = 30.0


def free_port(preferred: int = 8080) -> int:
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise SystemExit("no free port on 127.0.0.1")


def start(port: int, log: Path) -> subprocess.Popen[bytes]:
    """In a session of its own: a Ctrl-C reaches this process, which then stops the server in order."""
    command = [str(Path(sys.executable).with_name("mlx-serving")), "serve", MODEL, "--port", str(port)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)


def wait_until_ready(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SystemExit(f"the server ended with status {server.returncode}:\n{tail(log)}")
        try:
            with urlopen(f"{address}/readyz", timeout=5):
                return
        except (HTTPError, URLError, OSError):
            time.sleep(0.1)
    raise SystemExit(f"the server was not ready within {READY_SECONDS:.0f} s:\n{tail(log)}")


def tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])


def answer(address: str) -> Iterator[str]:
    """The pieces of the answer, as they arrive."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": QUESTION}],
        "stream": True,
        "max_tokens": 64,
        "temperature": 0,
    }
    request = Request(f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=120) as response:
        for line in response:
            data = line.decode().strip().removeprefix("data: ")
            if not data.startswith("{"):
                continue
            event = json.loads(data)
            if "error" in event:
                raise SystemExit(f"the server answered with an error: {event['error']}")
            for choice in event["choices"]:
                yield choice["delta"].get("content") or ""


def ask(address: str) -> None:
    print(f"\n> {QUESTION}", flush=True)
    length = 0
    for piece in answer(address):
        print(piece, end="", flush=True)
        length += len(piece)
    print("\n", flush=True)
    if not length:
        raise SystemExit("the answer was empty")


def stop(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def interrupted(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    once = "--once" in sys.argv[1:] or not sys.stdin.isatty()
    home = Path(os.environ.get("MLX_SERVING_HOME") or Path.home() / ".mlx-serving")
    log, port = home / "run.log", free_port()
    address = f"http://127.0.0.1:{port}"
    signal.signal(signal.SIGTERM, interrupted)
    print(f"==> starting the server on {address} (log: {log})", flush=True)
    server = start(port, log)
    try:
        wait_until_ready(server, address, log)
        ask(address)
        print(f"==> OpenAI API  {address}/v1\n==> health      {address}/health")
        print(f"==> metrics     {address}/metrics", flush=True)
        if not once:
            print("==> serving; Ctrl-C stops", flush=True)
            raise SystemExit(f"the server ended with status {server.wait()}:\n{tail(log)}")
    except KeyboardInterrupt:
        print("\n==> stopping", flush=True)
    finally:
        stop(server)


if __name__ == "__main__":
    main()
