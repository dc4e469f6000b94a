"""The stdio server: a runtime of its own for the program that started this one, from first actor to last.

stdout belongs to the protocol: its descriptor is moved away before anything else can print.
"""

from __future__ import annotations

import os
from pathlib import Path

from mlx_serving.actors.errors import CallerError
from mlx_serving.actors.logs import configure_logging
from mlx_serving.actors.system import Runtime
from mlx_serving.config.schema import Settings
from mlx_serving.frontends.stdio.server import StdioServer

Pipes = tuple[int, int]
"""Descriptors: what the host writes, what it reads."""

READY_LINE = b"MLX Runtime ready\n"
"""What hosts wait for on stderr, literally."""


def claim_stdio() -> Pipes:
    """The pipes to the host. From now on whatever is printed goes to stderr, and stdin is empty.

    Call it before anything can print. Raises CallerError when there is no host.
    """
    try:
        pipes = os.dup(0), os.dup(1)
    except OSError:
        raise CallerError("stdin and stdout must be open: the host speaks through them") from None
    os.dup2(2, 1)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    return pipes


def serve_stdio(settings: Settings, home: Path, pipes: Pipes) -> int:
    """Serve the host until it closes its end, asks for the end, or SIGINT or SIGTERM comes; the exit status.

    Call it on the main thread. Requests are answered as soon as the control actors run, even while a model
    loads. The runtime is private: live commands on this home do not see it. Raises the ServingError that kept
    the runtime from starting or ended it.
    """
    configure_logging(settings.telemetry)
    runtime = Runtime(settings, home, announce=False)
    runtime.install_signals()
    server: StdioServer | None = None
    try:
        runtime.start()
        server = StdioServer(settings, runtime.door, *pipes)
        server.start()
        os.write(2, READY_LINE)
        status = runtime.run()
        runtime.drain()
    finally:
        if server is not None:
            server.stop()
        runtime.stop()
    if runtime.failure is not None:
        raise runtime.failure
    return status
