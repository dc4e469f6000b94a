"""The main module of every child process: read the order from stdin, run the actor, leave with the parent."""

from __future__ import annotations

import os
import signal
import sys
import threading

from mlx_serving.actors import codec
from mlx_serving.actors.base import Loop, Node, Place, socket_options
from mlx_serving.actors.children import Order
from mlx_serving.actors.logs import configure_logging
from mlx_serving.actors.system import make_actor
from mlx_serving.actors.transport import Bus


def _leave_with_parent() -> None:
    """Block until the parent closes our stdin (its death does too), then end at once."""
    while sys.stdin.buffer.read(1):
        pass
    os._exit(1)


def main() -> int:
    """The exit status: 0 when the actor stopped as told, 1 when it failed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the host decides what Ctrl-C means
    order = Order.from_json(sys.stdin.readline())
    threading.Thread(target=_leave_with_parent, name="parent", daemon=True).start()
    configure_logging(order.settings.telemetry)
    # Beside the actor's own start, which takes a replica far longer.
    threading.Thread(target=codec.prepare, name="codec", daemon=True).start()
    bus = Bus(socket_options(order.settings))
    node = Node(bus, Place(order.name, order.book, in_host=False), order.settings, order.home)
    ended_well = Loop(make_actor(order), node).run()
    bus.close()
    return 0 if ended_well else 1


if __name__ == "__main__":
    # MLX's threads and their static state are not torn down in an order that always ends well.
    status = main()
    sys.stderr.flush()
    os._exit(status)
