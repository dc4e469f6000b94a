"""Starting and stopping the server."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
from support.fake_client import FakeClient, FakeStream, ending
from support.wait import until

from mlx_serving.actors.errors import ActorUnavailable, StartupFailed
from mlx_serving.config.schema import Http, Settings
from mlx_serving.frontends.http.server import HttpServer

STREAM = {"messages": [{"role": "user", "content": "hi"}], "stream": True}


def server_over(client: FakeClient, **http: Any) -> HttpServer:
    settings = Settings(http=Http(**{"port": 0, **http}))
    return HttpServer(settings, client, connect=FakeClient.connect)  # type: ignore[arg-type]


async def hello_behind_the_gate(stream: FakeStream) -> None:
    stream.push(0, "Hello")
    await stream.gate.wait()
    stream.push(0, "!", end=ending(tokens=2))
    stream.finish()


class Reading:
    """Reads a streamed answer on a thread of its own."""

    def __init__(self, url: str) -> None:
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._read, args=(url,))
        self._thread.start()

    def _read(self, url: str) -> None:
        with httpx2.stream("POST", f"{url}/v1/chat/completions", json=STREAM, timeout=60) as response:
            self.lines.extend(response.iter_lines())

    def text(self) -> str:
        self._thread.join(60)
        assert not self._thread.is_alive()
        return "\n".join(self.lines)


@contextmanager
def stopping(server: HttpServer, drain_seconds: float) -> Iterator[None]:
    """A stop on another thread, which has ended afterwards."""
    stopper = threading.Thread(target=server.stop, args=(drain_seconds,))
    stopper.start()
    yield
    stopper.join(60)
    assert not stopper.is_alive()


def test_a_free_port_is_reported() -> None:
    client = FakeClient()
    server = server_over(client)
    url = server.start()
    assert httpx2.get(f"{url}/livez").status_code == 200
    assert not url.endswith(":0")
    server.stop(0)
    assert client.closed.is_set()
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{url}/livez")


def test_a_taken_port_is_told_with_the_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StartupFailed, match=rf"Port {port} of 127\.0\.0\.1 is taken.*--port"):
            server_over(FakeClient(), port=port).start()


def test_a_host_without_address_is_told() -> None:
    with pytest.raises(StartupFailed, match="--host"):
        server_over(FakeClient(), host="no such host").start()


def test_ipv6_loopback_is_served() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    server = server_over(FakeClient(), host="::1")
    try:
        url = server.start()
    except StartupFailed:
        pytest.skip("no IPv6 here")
    assert url.startswith("http://[::1]:")
    assert httpx2.get(f"{url}/livez").status_code == 200
    server.stop(0)


def test_nobody_at_the_door_is_the_error_of_start() -> None:
    async def refuse(door: Any, name: str, settings: Settings) -> Any:
        raise ActorUnavailable("nobody answers at the door")

    with pytest.raises(ActorUnavailable, match="nobody answers"):
        HttpServer(Settings(http=Http(port=0)), "", connect=refuse).start()


def test_an_open_stream_may_finish_while_nobody_new_comes_in() -> None:
    client = FakeClient(hello_behind_the_gate)
    server = server_over(client)
    url = server.start()
    reading = Reading(url)
    until(lambda: client.streams, what="the request")
    with stopping(server, 20):
        until(lambda: _is_refused(url), what="the closed door")
        client.streams[0].gate.open()
        assert "[DONE]" in reading.text()


def test_a_stream_that_outlasts_the_drain_ends_with_an_error() -> None:
    client = FakeClient(hello_behind_the_gate)
    server = server_over(client)
    reading = Reading(server.start())
    until(lambda: client.streams, what="the request")
    server.stop(0)
    assert '"code":"actor_unavailable"' in reading.text()
    assert "[DONE]" not in reading.text()
    assert client.streams[0].cancelled.is_set()


def test_a_reader_that_takes_nothing_does_not_hold_up_the_stop() -> None:
    async def say_much(stream: FakeStream) -> None:
        while True:
            stream.push(0, "x" * 65_536)
            await stream.taken()

    client = FakeClient(say_much)
    server = server_over(client)
    with httpx2.stream("POST", f"{server.start()}/v1/chat/completions", json=STREAM):
        server.stop(0)
    assert client.closed.is_set()


def _is_refused(url: str) -> bool:
    try:
        httpx2.get(f"{url}/livez")
    except (httpx2.ConnectError, httpx2.RemoteProtocolError, httpx2.ReadError):
        return True
    return False
