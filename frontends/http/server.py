"""The HTTP server: uvicorn on a thread and a loop of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import logging
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

from mlx_serving.actors.errors import ActorUnavailable, StartupFailed
from mlx_serving.config.schema import Http, Settings
from mlx_serving.frontends.client import Client
from mlx_serving.frontends.http.app import App
from mlx_serving.frontends.http.generations import Running

Connect = Callable[[Any, str, Settings], Awaitable[Client]]

_BACKLOG = 2048
_LAST_WORDS_SECONDS = 1.0
"""At shutdown, how long readers may take to fetch the error that ended their stream."""

_log = logging.getLogger(__name__)


class HttpServer:
    """Serves the actors behind a door: whatever `connect` takes, for a Client an address or attachment.

    `start` binds, connects and returns the URL; `stop` drains. Both are called from any thread but the
    server's own.
    """

    def __init__(self, settings: Settings, door: Any, *, connect: Connect = Client.connect) -> None:
        self._settings = settings
        self._door = door
        self._connect = connect
        self._running = Running()
        self._ready: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: uvicorn.Server | None = None

    def start(self) -> str:
        """The URL with the real port. Raises StartupFailed, or ActorUnavailable: nobody is at the door."""
        self._socket = _bind(self._settings.http)
        url = _url(self._socket)
        self._thread.start()
        try:
            self._ready.result(self._settings.supervision.ready_seconds)
        except BaseException as error:
            self._socket.close()
            if isinstance(error, TimeoutError):
                raise StartupFailed("The HTTP server did not start in time") from None
            raise
        return url

    def stop(self, seconds: float) -> None:
        """Accept nothing more, let open requests finish for that long, end the rest with an error."""
        if self._thread.is_alive() and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has just ended
                self._loop.call_soon_threadsafe(self._begin_drain, seconds)
            self._thread.join(seconds + 3 * _LAST_WORDS_SECONDS)
        if self._socket is not None:
            self._socket.close()

    def _begin_drain(self, seconds: float) -> None:
        if self._loop is None or self._server is None:
            return
        self._server.should_exit = True
        gone = ActorUnavailable("The server is shutting down")
        self._loop.call_later(seconds, self._running.fail_all, gone)
        self._loop.call_later(seconds + _LAST_WORDS_SECONDS, self._abort)

    def _abort(self) -> None:
        """Drop connections whose readers do not take even the error."""
        if self._server is not None:
            for connection in list(self._server.server_state.connections):
                connection.transport.abort()
            self._server.force_exit = True

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                runner.run(self._serve())
        except BaseException as error:
            if self._ready.done():
                _log.exception("The HTTP server ended")
            else:
                self._ready.set_exception(error)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        client = await self._connect(self._door, "http", self._settings)
        try:
            app = App(client, self._settings, self._running)
            self._server = _Server(_uvicorn_config(app), self._ready)
            await self._server.serve(sockets=[self._socket] if self._socket else None)
        finally:
            await client.close()


class _Server(uvicorn.Server):
    """Says when it accepts connections."""

    def __init__(self, config: uvicorn.Config, ready: concurrent.futures.Future[None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready.set_result(None)


def _uvicorn_config(app: Callable[..., object]) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
    )


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def _bind(http: Http) -> socket.socket:
    """A bound socket that does not listen yet."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            http.host, http.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise StartupFailed(f"No address for host {http.host}: {error}. Choose another with --host") from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise StartupFailed(_why_not(http, error)) from None
    return listener


def _why_not(http: Http, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {http.port} of {http.host} is taken. Choose another with --port; --port 0 picks a free one"
    if error.errno == errno.EACCES:
        return f"Port {http.port} needs more rights. Choose one above 1023 with --port"
    return f"Cannot bind {http.host} port {http.port}: {error.strerror}"


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
