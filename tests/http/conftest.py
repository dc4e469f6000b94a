"""An HTTP server on a free port over a fake client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs
import httpx2
import pytest
from support.fake_client import FakeClient

from mlx_serving.config.schema import Http, Settings
from mlx_serving.frontends.http.server import HttpServer

Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server over a FakeClient with these HTTP settings; its URL. Stopped with the test."""
    servers: list[HttpServer] = []

    def start(client: FakeClient | None = None, **http: Any) -> str:
        settings = Settings(http=attrs.evolve(Http(port=0), **http))
        server = HttpServer(settings, client or FakeClient(), connect=FakeClient.connect)  # type: ignore[arg-type]
        url = server.start()
        servers.append(server)
        return url

    yield start
    for server in servers:
        server.stop(0)


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """A server with the default settings that all tests share."""
    server = HttpServer(Settings(http=Http(port=0)), FakeClient(), connect=FakeClient.connect)  # type: ignore[arg-type]
    yield server.start()
    server.stop(0)


@pytest.fixture
def browse() -> Iterator[Callable[[str], httpx2.Client]]:
    """HTTP clients that are closed with the test."""
    clients: list[httpx2.Client] = []

    def make(url: str) -> httpx2.Client:
        clients.append(httpx2.Client(base_url=url, timeout=60))
        return clients[-1]

    yield make
    for client in clients:
        client.close()
