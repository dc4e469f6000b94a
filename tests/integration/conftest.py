"""Servers for the integration tests, in both placements of the control actors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from support.server import Server

CONTROL = ("admission", "batching", "telemetry", "qos")


def placed(placement: str) -> dict[str, Any]:
    return {f"actors__{name}": placement for name in CONTROL}


@pytest.fixture(scope="module", params=["thread", "process"])
def placement(request: pytest.FixtureRequest) -> str:
    """Where the control actors run."""
    return str(request.param)


@pytest.fixture(scope="module")
def scripted(serving_home: Path, placement: str) -> Iterator[Server]:
    """A server whose replica says prepared tokens, 2 ms a step."""
    settings = {
        **placed(placement),
        "generation__engine": "scripted",
        "generation__scripted_step_seconds": 0.002,
    }
    with Server(serving_home, admission__stream_window=64, **settings) as server:
        yield server


@pytest.fixture(scope="module")
def server(serving_home: Path) -> Iterator[Server]:
    """The real model as it is served by default."""
    with Server(serving_home) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=300) as made:
        yield made


@pytest.fixture(scope="module")
def model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id
