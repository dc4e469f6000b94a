"""Starting and stopping: `serve`, embedded runtimes, and what Ctrl-C does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil
import pytest
from cli.conftest import Run
from support.server import COMMAND, Server, environment
from support.tiny_models import make_tiny_model
from support.wait import until

from mlx_serving.actors.models.record import ModelRecord

pytestmark = pytest.mark.integration


def slow(home: Path) -> Server:
    """A server whose answers take a while."""
    return Server(home, generation__engine="scripted", generation__scripted_step_seconds=0.05)


@pytest.fixture(scope="module")
def lasting(serving_home: Path) -> Iterator[Server]:
    """Shared by the tests that leave it running."""
    with slow(serving_home) as running:
        yield running


@pytest.fixture
def stocked(smollm2: ModelRecord, home: Path) -> Path:
    """A home with the model in it, on which nothing runs."""
    (home / "models").mkdir()
    (home / "models" / smollm2.name).symlink_to(smollm2.path)
    return home


@pytest.fixture
def server(stocked: Path) -> Iterator[Server]:
    """For a test that ends it."""
    with slow(stocked) as running:
        yield running


def started(home: Path, *arguments: str, **settings: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments],
        env=environment(home, **settings),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def first_character(pipe: IO[str] | None) -> str:
    """Blocks until something has come; past the buffer of `pipe`, as `communicate` reads."""
    assert pipe is not None
    return os.read(pipe.fileno(), 1).decode()


def active_streams(server: Server) -> int:
    return int(server.get("/health")[1]["active_streams"])


def test_serve_says_where_it_listens_and_what_it_serves(lasting: Server) -> None:
    until(lambda: "ready" in lasting.log() and f"{lasting.url}/v1" in lasting.log(), what="the table")
    assert "smollm2-135m" in lasting.log()


def test_the_first_signal_lets_a_running_answer_finish(server: Server, stocked: Path) -> None:
    with started(stocked, "generate", "Hello", "-n", "40") as asking:
        first = first_character(asking.stdout)
        server.process.send_signal(signal.SIGINT)
        rest, _ = asking.communicate(timeout=120)
    assert len((first + rest).split()) == 40
    assert asking.returncode == 0
    assert server.process.wait(60) == 0


def test_a_second_signal_ends_a_running_answer_with_a_typed_error(server: Server, stocked: Path) -> None:
    with started(stocked, "generate", "Hello", "-n", "4000") as asking:
        first_character(asking.stdout)
        server.process.send_signal(signal.SIGINT)
        until(lambda: server.get("/readyz")[0] != 200, what="the drain")
        server.process.send_signal(signal.SIGINT)
        _, told = asking.communicate(timeout=120)
    server.process.wait(60)
    assert asking.returncode == 69
    assert told.startswith("error:")


def test_a_second_signal_ends_a_stream_over_http_too(server: Server) -> None:
    body = json.dumps({"prompt": "Hello", "max_tokens": 4000, "stream": True}).encode()
    asked = urllib.request.Request(f"{server.url}/v1/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=120) as stream:
        assert stream.read(1)
        server.process.send_signal(signal.SIGINT)
        until(lambda: "drain" in server.log() or server.get("/livez")[0] == 0, what="the drain")
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 0
        assert b"actor_unavailable" in stream.read()


def test_ctrl_c_ends_generate_and_frees_its_row(lasting: Server, serving_home: Path) -> None:
    with started(serving_home, "generate", "Hello", "-n", "4000") as asking:
        first_character(asking.stdout)
        asking.send_signal(signal.SIGINT)
        _, told = asking.communicate(timeout=120)
    assert asking.returncode == 130
    assert "Traceback" not in told
    until(lambda: active_streams(lasting) == 0, what="the end of the stream")


def test_ctrl_c_stops_an_answer_of_chat_and_keeps_the_conversation(lasting: Server, serving_home: Path) -> None:
    with started(serving_home, "chat", "-n", "1000") as chat:
        assert chat.stdin is not None
        chat.stdin.write("Hello\n")
        chat.stdin.flush()
        first_character(chat.stdout)
        chat.send_signal(signal.SIGINT)
        until(lambda: active_streams(lasting) == 0, what="the end of the stream")
        said, told = chat.communicate("/system Be brief.\n/exit\n", timeout=120)
    assert chat.returncode == 0
    assert "stopped" in told
    assert "system message set" in told
    assert 0 < len(said.split()) < 1000


def test_a_reader_that_closes_the_pipe_ends_generate_quietly(lasting: Server, serving_home: Path) -> None:
    with started(serving_home, "generate", "Hello", "-n", "4000") as asking:
        first_character(asking.stdout)
        assert asking.stdout is not None
        asking.stdout.close()
        asking.wait(120)
        assert asking.stderr is not None
        assert asking.stderr.read() == ""
    until(lambda: active_streams(lasting) == 0, what="the end of the stream")


def test_a_taken_port_is_refused_by_name(run: Run, stocked: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused = run("serve", "--port", port, home=stocked, generation__engine="scripted")
    assert refused.returncode == 1
    assert port in refused.stderr
    assert "--port" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_server_that_cannot_start_leaves_the_running_one_where_it_is_found(
    run: Run, lasting: Server, serving_home: Path
) -> None:
    port = lasting.url.rpartition(":")[2]
    assert run("serve", "--port", port, home=serving_home, generation__engine="scripted").returncode == 1
    assert lasting.url in run("status", home=serving_home).stdout


def test_a_model_nobody_knows_is_refused_before_anything_starts(run: Run, stocked: Path) -> None:
    refused = run("serve", "smolm2", home=stocked)
    assert refused.returncode == 2
    assert "smollm2-135m" in refused.stderr
    assert not list((stocked / "run").glob("r*"))


def test_a_draft_model_of_another_vocabulary_is_refused_by_one_clear_error(run: Run, home: Path) -> None:
    make_tiny_model(home / "models" / "target", "llama")
    tokenizer = make_tiny_model(home / "models" / "stranger", "llama").path / "tokenizer.json"
    tokens = json.loads(tokenizer.read_text(encoding="utf-8"))
    ids = tokens["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    tokenizer.write_text(json.dumps(tokens), encoding="utf-8")
    refused = run("serve", "target", "--draft-model", "stranger", "--port", "0", home=home)
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    told = [line for line in refused.stderr.splitlines() if "stranger" in line]
    assert len(told) == 1, refused.stderr
    assert told[0].startswith("error: the draft model stranger has another vocabulary than target")
    assert "choose a draft model of the same family" in told[0]


def test_a_draft_model_nobody_knows_is_refused_before_anything_starts(run: Run, stocked: Path) -> None:
    refused = run("serve", "smollm2-135m", "--draft-model", "smolm2", home=stocked)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: there is no model 'smolm2'")
    assert "Traceback" not in refused.stderr
    assert not list((stocked / "run").glob("r*"))


def test_without_a_server_generate_starts_one_for_itself_and_leaves_nothing(run: Run, stocked: Path) -> None:
    done = run("generate", "Hello", "-n", "6", home=stocked, generation__engine="scripted")
    assert (done.returncode, len(done.stdout.split())) == (0, 6)
    assert "for this command alone" in done.stderr
    assert list((stocked / "run").iterdir()) == []
    mine = [process for process in psutil.process_iter(["environ"]) if _on(process, stocked)]
    assert mine == []


def _on(process: psutil.Process, home: Path) -> bool:
    return (process.info["environ"] or {}).get("MLX_SERVING_HOME") == str(home)


def test_stdio_prints_nothing_but_the_protocol(run: Run, stocked: Path) -> None:
    probe = '{"jsonrpc":"2.0","method":"runtime/info","id":1}\n{"jsonrpc":"2.0","method":"shutdown","id":2}\n'
    done = run("stdio", stdin=probe, home=stocked, generation__engine="scripted")
    assert done.returncode == 0
    assert [line[0] for line in done.stdout.splitlines()] == ["{", "{"]
    assert "MLX Runtime ready" in done.stderr.splitlines()
