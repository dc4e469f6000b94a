"""The first request after ready does nothing that the second would not do again: no import, no code to compile."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.first_calls import FirstCalls
from support.server import COMMAND, Server, environment

pytestmark = [pytest.mark.integration, pytest.mark.model]

CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 3, "temperature": 0}
SCHEMA = {"type": "object", "properties": {"colour": {"type": "string"}}, "required": ["colour"]}
READY = b"MLX Runtime ready\n"


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> FirstCalls:
    return FirstCalls(tmp_path_factory.mktemp("calls") / "log")


@pytest.fixture(scope="module")
def server(serving_home: Path, calls: FirstCalls) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in calls.environment.items():
            patch.setenv(name, value)
        with Server(serving_home) as running:
            yield running


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {**ASKED, "stream": True, "stream_options": {"include_usage": True}}),
        (CHAT, ASKED),
        ("/v1/completions", {"prompt": "The sky is", "max_tokens": 3, "stream": True}),
        ("/v1/completions", {"prompt": "The sky is", "max_tokens": 3, "logprobs": 1, "top_p": 0.9, "seed": 1}),
        (
            CHAT,
            {**ASKED, "response_format": {"type": "json_schema", "json_schema": {"name": "colour", "schema": SCHEMA}}},
        ),
    ],
    ids=["streamed chat", "chat", "streamed completion", "sampled completion", "json schema"],
)
def test_no_process_imports_or_compiles_anything_for_the_first_request_of_a_kind(
    server: Server, calls: FirstCalls, path: str, body: dict[str, Any]
) -> None:
    calls.news()
    status, answer = server.post(path, body)
    assert status == 200, answer
    assert calls.news() == []


def test_the_log_knows_both_the_host_and_the_replica(server: Server, calls: FirstCalls) -> None:
    logged = calls.path.read_text().splitlines()
    assert f"{server.process.pid} imports starlette.routing" in logged
    assert f"{server.replica_pid()} imports mlx_lm" in logged
    assert any(" compiles <cattrs generated" in line for line in logged)


def test_neither_does_the_first_request_over_stdio(serving_home: Path, calls: FirstCalls) -> None:
    given = {**environment(serving_home), **calls.environment}
    pipe = subprocess.PIPE
    with subprocess.Popen([*COMMAND, "stdio"], stdin=pipe, stdout=pipe, stderr=pipe, env=given) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            stdin, messages = process.stdin, map(json.loads, iter(process.stdout.readline, b""))
            assert READY in iter(process.stderr.readline, b"")

            def call(method: str, **params: object) -> None:
                line = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
                stdin.write(line.encode() + b"\n")
                stdin.flush()

            call("load_model", model_id="smollm2-135m")
            assert "result" in next(message for message in messages if "id" in message)
            calls.news()
            call("generate", model_id="smollm2-135m", prompt="The sky is", max_tokens=3, ignore_eos=True)
            next(message for message in messages if message.get("params", {}).get("is_final"))
            assert calls.news() == []
        finally:
            process.kill()
