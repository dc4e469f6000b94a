"""The stdio server: a runtime of its own for the program that started this one, from first actor to last."""

from __future__ import annotations

import os
from pathlib import Path

from mlx_serving.actors.logs import configure_logging
from mlx_serving.actors.system import Runtime
from mlx_serving.config.schema import Settings
from mlx_serving.frontends.stdio.server import StdioServer, claim_stdio

READY_LINE = b"MLX Runtime ready\n"
"""What hosts wait for on stderr, literally."""


def serve_stdio(settings: Settings, home: Path) -> int:
    """Serve the host until it closes its end, asks for the end, or SIGINT or SIGTERM comes; the exit status.

    Call it on the main thread. Requests are answered as soon as the control actors run, even while a model
    loads. The runtime is private: live commands on this home do not see it. Raises the
    ServingError that kept the runtime from starting or ended it.
    """
    in_fd, out_fd = claim_stdio()
    configure_logging(settings.telemetry)
    runtime = Runtime(settings, home, announce=False)
    runtime.install_signals()
    server: StdioServer | None = None
    try:
        runtime.start()
        server = StdioServer(settings, runtime.door, in_fd, out_fd)
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
