"""The stdio frontend as a whole: one host on two pipes, from its first byte to its last."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from mlx_serving.actors.messages.admission import ShutdownRequested
from mlx_serving.config.schema import Settings
from mlx_serving.frontends.client import Client
from mlx_serving.frontends.stdio.calls import Calls
from mlx_serving.frontends.stdio.endpoint import Endpoint
from mlx_serving.frontends.stdio.framing import Framer
from mlx_serving.frontends.stdio.pipes import Intake, Outbox
from mlx_serving.frontends.stdio.session import Session
from mlx_serving.frontends.stdio.streams import Streams
from mlx_serving.frontends.stdio.wire import Wire

_log = logging.getLogger(__name__)

Connect = Callable[[Any, str, Settings], Awaitable[Client]]


class StdioServer:
    """Serves one host over `in_fd` and `out_fd` with the actors behind a door: whatever `connect` takes.

    Runs on a thread and a loop of its own between `start` and `stop`.
    """

    def __init__(
        self, settings: Settings, door: Any, in_fd: int, out_fd: int, *, connect: Connect = Client.connect
    ) -> None:
        self._settings = settings
        self._door = door
        self._in_fd = in_fd
        self._out_fd = out_fd
        self._connect = connect
        self._ready: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, name="stdio", daemon=True)
        self._stopped = threading.Event()
        self._wake: Callable[[], None] | None = None

    def start(self) -> None:
        """Return once requests are answered. Raises ActorUnavailable when nobody is at the door."""
        self._thread.start()
        self._ready.result()

    def stop(self) -> None:
        """The runtime ends: tell the host what became of its requests, for a bounded time, then let it go."""
        self._stopped.set()
        if self._wake is not None:
            self._wake()
        if self._thread.is_alive():
            self._thread.join(2 * self._settings.supervision.drain_seconds)

    def _run(self) -> None:
        try:
            asyncio.run(self.serve())
        except BaseException as error:
            if self._ready.done():
                _log.exception("the stdio frontend ended")
                os.kill(os.getpid(), signal.SIGTERM)  # nobody can talk to the runtime any more
            else:
                self._ready.set_exception(error)

    async def serve(self) -> None:
        """Until the host is gone or asked for the end, which the runtime is then told, or until `stop`."""
        client = await self._connect(self._door, "stdio", self._settings)
        try:
            await self._serve(client)
            if not self._stopped.is_set():
                await client.ask(ShutdownRequested())
        finally:
            await client.close()

    async def _serve(self, client: Client) -> None:
        framer = Framer(self._settings.stdio.max_line_bytes, self._settings.stdio.max_output_line_bytes)
        outbox = Outbox(self._out_fd)
        wire = Wire(framer, outbox)
        session = Session(client, self._settings, wire, Streams(client, wire), Calls())
        self._wake = _from_any_thread(session.stopping.set)
        self._ready.set_result(None)
        over = [asyncio.create_task(event.wait()) for event in (session.stopping, outbox.broken)]
        try:
            await _first(self._take_in(Endpoint(session), framer), over)
            await _first(session.drain(), over)
            await _first(self._part(session, wire), over[1:])
        finally:
            self._wake = None
            for task in over:
                task.cancel()
            await session.abandon()
            outbox.close()

    async def _take_in(self, endpoint: Endpoint, framer: Framer) -> None:
        """Until the host closes its end."""
        intake = Intake(self._in_fd)
        while data := await intake.read():
            for incoming in framer.feed(data):
                await endpoint.receive(incoming)
                await asyncio.sleep(0)  # a burst of messages must not hold up the streams
        for incoming in framer.end():
            await endpoint.receive(incoming)

    async def _part(self, session: Session, wire: Wire) -> None:
        """End what is left and say so, as long as the host reads."""
        await session.cancel_everything()
        try:
            async with asyncio.timeout(self._settings.supervision.drain_seconds):
                await wire.flush()
        except TimeoutError:
            _log.warning("the host does not read; what it has not read is lost")


def _from_any_thread(action: Callable[[], None]) -> Callable[[], None]:
    loop = asyncio.get_running_loop()

    def call() -> None:
        try:
            loop.call_soon_threadsafe(action)
        except RuntimeError:  # the loop has ended by itself
            return

    return call


async def _first(work: Coroutine[Any, Any, None], over: Sequence[asyncio.Task[Any]]) -> None:
    """Return when `work` is done, or when one of `over` is; then `work` is broken off."""
    task = asyncio.create_task(work)
    await asyncio.wait([task, *over], return_when=asyncio.FIRST_COMPLETED)
    task.cancel()
    try:
        await task
    except (asyncio.CancelledError, BrokenPipeError):
        return
