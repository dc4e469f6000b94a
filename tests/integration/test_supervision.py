"""What the supervisor promises, on real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest
from integration.conftest import placed
from support.server import Server
from support.sse import EventStream
from support.tiny_models import make_tiny_model
from support.wait import until

pytestmark = pytest.mark.integration

BODY = {"prompt": "a b c", "max_tokens": 5000, "ignore_eos": True}
SCRIPTED: dict[str, Any] = {"generation__engine": "scripted", "generation__scripted_step_seconds": 0.002}


def test_a_killed_replica_fails_its_streams_at_once_and_is_back(serving_home: Path, placement: str) -> None:
    # So long that no silence, only the death itself, can have ended the stream.
    patient: dict[str, Any] = {"supervision__heartbeat_timeout": 600, "supervision__progress_timeout": 600}
    with Server(serving_home, **SCRIPTED, **patient, **placed(placement)) as server:
        with EventStream(server.url, "/v1/completions", BODY) as stream:
            stream.next_event()
            pid = server.replica_pid()
            os.kill(pid, signal.SIGKILL)
            *_, last = stream.events()
        assert last["error"]["code"] == "replica_lost"
        until(
            lambda: server.get("/readyz")[0] == 200 and server.replica_pid() not in (0, pid),
            what="the new replica",
        )
        assert server.post("/v1/completions", {**BODY, "max_tokens": 3})[0] == 200
        assert server.get("/health")[1]["restarts"] >= 1


def test_readiness_tells_the_truth_while_a_replica_is_gone(serving_home: Path) -> None:
    with Server(serving_home, **SCRIPTED, supervision__restart_backoff=1.0) as server:
        os.kill(server.replica_pid(), signal.SIGKILL)
        _, answer = until(lambda: found if (found := server.get("/readyz"))[0] == 503 else None, what="503") or (0, {})
        assert "signal 9" in answer["reason"]
        assert server.get("/livez")[0] == 200
        until(lambda: server.get("/readyz")[0] == 200, what="200")


def test_a_request_that_had_no_token_yet_survives_the_death_of_its_replica(serving_home: Path) -> None:
    slow = {**SCRIPTED, "generation__scripted_step_seconds": 1.0}
    with Server(serving_home, **slow) as server:
        with EventStream(server.url, "/v1/completions", {**BODY, "max_tokens": 2}) as stream:
            until(lambda: server.get("/health")[1]["queue"]["running"] == 1, what="the running sequence")
            os.kill(server.replica_pid(), signal.SIGKILL)
            events = list(stream.events())
        assert "error" not in events[-1]
        assert any(choice["finish_reason"] == "length" for event in events for choice in event["choices"])


def test_a_replica_that_stands_still_with_work_pending_is_replaced(serving_home: Path) -> None:
    with Server(serving_home, **SCRIPTED, supervision__progress_timeout=1.5) as server:
        pid = server.replica_pid()
        with EventStream(server.url, "/v1/completions", BODY) as stream:
            stream.next_event()
            os.kill(pid, signal.SIGSTOP)
            *_, last = stream.events()
        assert last["error"]["code"] == "replica_lost"
        until(lambda: not psutil.pid_exists(pid), what="the end of the stopped process")
        until(lambda: server.get("/readyz")[0] == 200, what="200")


def test_lost_control_actors_come_back_together(serving_home: Path) -> None:
    with Server(serving_home, **SCRIPTED, **placed("process"), admission__keepalive_seconds=0.2) as server:
        pids = {actor["name"]: actor["pid"] for actor in server.get("/health")[1]["actors"]}
        with EventStream(server.url, "/v1/completions", BODY) as stream:
            stream.next_event()
            os.kill(pids["admission"], signal.SIGKILL)
            *_, last = stream.events()
        assert last["error"]["code"] == "actor_unavailable"
        until(lambda: server.get("/readyz")[0] == 200, what="200")
        status, answer = server.post("/v1/completions", {**BODY, "max_tokens": 3})
        assert (status, answer["usage"]["completion_tokens"]) == (200, 3)
        for name in ("batching", "telemetry", "qos"):
            os.kill(pids[name], signal.SIGKILL) if psutil.pid_exists(pids[name]) else None
        until(lambda: server.get("/readyz")[0] == 200, what="200")
        until(lambda: server.post("/v1/completions", {**BODY, "max_tokens": 3})[0] == 200, what="an answer")


def test_no_process_outlives_a_killed_server(serving_home: Path, placement: str) -> None:
    with Server(serving_home, **SCRIPTED, **placed(placement)) as server:
        children = server.children()
        assert len(children) == (1 if placement == "thread" else 5)
        server.process.kill()
        server.process.wait(60)
        _, alive = psutil.wait_procs(children, timeout=60)
        assert alive == []


def test_sigterm_lets_running_answers_finish_and_takes_no_new_ones(serving_home: Path, placement: str) -> None:
    with Server(serving_home, **SCRIPTED, **placed(placement)) as server:
        with EventStream(server.url, "/v1/completions", {**BODY, "max_tokens": 600}) as stream:
            stream.next_event()
            server.process.send_signal(signal.SIGTERM)
            events = list(stream.events())
        assert any(choice["finish_reason"] == "length" for event in events for choice in event["choices"])
        assert server.process.wait(60) == 0


def test_a_second_signal_ends_everything_now(serving_home: Path) -> None:
    slow = {**SCRIPTED, "generation__scripted_step_seconds": 0.1, "supervision__drain_seconds": 600}
    with (
        Server(serving_home, **slow) as server,
        EventStream(server.url, "/v1/completions", BODY) as stream,
    ):
        stream.next_event()
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.get("/readyz")[0] != 200, what="draining")
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)


def test_a_model_that_cannot_be_loaded_ends_the_server_with_the_reason(home: Path) -> None:
    folder = home / "models" / "broken"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    server = Server(home, ready=False, models__default="broken")
    with pytest.raises(AssertionError, match="broken") as failed, server:
        pass
    assert "Traceback" not in str(failed.value)


def test_a_load_that_fails_is_reported_and_the_default_model_goes_on(serving_home: Path) -> None:
    with Server(serving_home, **SCRIPTED) as server:
        status, answer = server.post("/admin/models/load", {"model": "smollm3"})
        assert (status, answer["error"]["code"]) == (404, "model_not_found")
        assert server.post("/v1/completions", {**BODY, "max_tokens": 3})[0] == 200


def test_a_replica_that_cannot_start_is_named_in_the_log_without_a_traceback(home: Path) -> None:
    make_tiny_model(home / "models" / "whole", "llama")
    config = make_tiny_model(home / "models" / "other", "llama").path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "intermediate_size": 48}))
    with Server(home, models__default="whole") as server:
        status, answer = server.post("/admin/models/load", {"model": "other"})
        assert (status, answer["error"]["code"]) == (500, "model_load_failed")
        assert server.get("/readyz")[0] == 200
        assert "replica cannot start" in server.log()
        assert answer["error"]["message"] in server.log()
        assert "Traceback" not in server.log()


def test_two_servers_share_a_home_and_do_not_meet(serving_home: Path) -> None:
    with Server(serving_home, **SCRIPTED) as one, Server(serving_home, **SCRIPTED) as two:
        assert one.url != two.url
        assert one.post("/v1/completions", {**BODY, "max_tokens": 3})[0] == 200
        assert two.post("/v1/completions", {**BODY, "max_tokens": 3})[0] == 200


def test_a_port_in_use_is_a_clear_error(serving_home: Path) -> None:
    with Server(serving_home, **SCRIPTED) as server:
        port = server.url.rsplit(":", 1)[1]
        from support.server import COMMAND, environment

        second = subprocess.run(
            [*COMMAND, "serve", "--port", port],
            env=environment(serving_home, **SCRIPTED),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert second.returncode != 0
        assert port in second.stderr
        assert "Traceback" not in second.stderr


def test_a_host_that_stood_still_goes_on_when_it_wakes(serving_home: Path) -> None:
    limits: dict[str, Any] = {"supervision__heartbeat_timeout": 2.0, "admission__frontend_timeout": 2.0}
    with (
        Server(serving_home, **SCRIPTED, **limits, admission__keepalive_seconds=0.2) as server,
        EventStream(server.url, "/v1/completions", {**BODY, "max_tokens": 1500}) as stream,
    ):
        stream.next_event()
        pid = server.replica_pid()
        server.process.send_signal(signal.SIGSTOP)
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(5)
        server.process.send_signal(signal.SIGCONT)
        events = list(stream.events())
        assert any(choice["finish_reason"] == "length" for event in events for choice in event["choices"])
        assert server.replica_pid() == pid
        assert server.get("/readyz")[0] == 200
