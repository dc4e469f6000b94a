"""Several models in one server: loaded when asked for, unloaded when in the way. Scripted engines, real processes."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.adapters import make_adapter
from support.server import COMMAND, Server, environment
from support.sse import EventStream
from support.tiny_models import make_tiny_model
from support.wait import until

from mlx_serving.actors.models.adapter_store import AdapterStore
from mlx_serving.actors.models.store import ModelStore

pytestmark = pytest.mark.integration

NAMES = ("a", "b", "c")
SHORT = {"prompt": "x", "max_tokens": 3}
LONG = {"prompt": "x", "max_tokens": 400, "ignore_eos": True}
CACHE = 1 << 20


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models of the same size, and an adapter for the second."""
    folder = tmp_path_factory.mktemp("home", numbered=True)
    (folder / "models").mkdir(mode=0o700)
    made = make_tiny_model(folder / "models" / "a", "llama")
    for name in NAMES[1:]:
        shutil.copytree(made.path, folder / "models" / name)
    adapter = make_adapter(folder / "trained", made.path)
    AdapterStore(folder).add(adapter, ModelStore(folder).show("b"), "own")
    return folder


@pytest.fixture
def serve(home: Path) -> Callable[..., Server]:
    """A server with room for so many of the models."""

    def make(room: int, **settings: Any) -> Server:
        size = ModelStore(home).show("a").bytes + CACHE
        given: dict[str, Any] = {
            "models__default": "a",
            "models__memory_bytes": room * size + size // 2,
            "generation__engine": "scripted",
            "generation__scripted_step_seconds": 0.002,
            "generation__kv_bytes": CACHE,
            "generation__max_rows": 2,
        }
        return Server(home, **{**given, **settings})

    return make


@pytest.fixture
def served(serve: Callable[..., Server]) -> Iterator[Server]:
    with serve(2) as server:
        yield server


def loaded(server: Server) -> set[str]:
    """Names of the models that are ready."""
    models = server.get("/v1/models")[1]["data"]
    return {model["id"] for model in models if model["state"] == "ready" and "parent" not in model}


def run(home: Path, *arguments: str) -> str:
    """What a command on `home` says."""
    done = subprocess.run([*COMMAND, *arguments], env=environment(home), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ask(server: Server, model: str | None, body: dict[str, Any] = SHORT) -> tuple[int, Any]:
    return server.post("/v1/completions", body if model is None else {**body, "model": model})


def metric(server: Server, name: str) -> dict[str, float]:
    """Values of a metric by the text of its labels."""
    lines = [line for line in server.get("/metrics")[1].splitlines() if line.startswith(name)]
    return {line[len(name) :].rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_models_come_when_asked_for_and_the_least_recently_used_leaves(served: Server) -> None:
    assert loaded(served) == {"a"}
    status, answer = ask(served, "b")
    assert (status, answer["model"]) == (200, "b")
    assert loaded(served) == {"a", "b"}
    assert ask(served, "a")[0] == 200
    assert ask(served, "c")[0] == 200
    assert loaded(served) == {"a", "c"}, "b was used before a"
    entries = {entry["id"]: entry for entry in served.get("/v1/models")[1]["data"]}
    assert entries["b"]["state"] == "stored"
    assert entries["a"]["memory_bytes"] > CACHE
    assert entries["c"]["last_used"] >= entries["a"]["last_used"] > 0
    until(lambda: metric(served, "mlx_serving_model_unloads_total"), what="the metric")
    assert metric(served, "mlx_serving_model_unloads_total") == {'{model="b",reason="memory"}': 1.0}
    assert sum(metric(served, "mlx_serving_model_loads_total").values()) == 3
    resident = metric(served, "mlx_serving_resident_bytes")
    assert set(resident) == {'{model="a"}', '{model="c"}'}
    assert sum(resident.values()) <= metric(served, "mlx_serving_model_memory_limit_bytes")[""]


def test_requests_that_come_together_share_one_load(served: Server) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(served, "b")[0], range(8)))
    assert answers == [200] * 8
    assert metric(served, "mlx_serving_model_loads_total")['{model="b"}'] == 1


def test_a_model_with_a_live_stream_stays_and_the_error_has_the_numbers(serve: Callable[..., Server]) -> None:
    with serve(1) as server:
        with EventStream(server.url, "/v1/completions", {**LONG, "model": "a", "max_tokens": 5000}) as stream:
            stream.next_event()
            status, answer = ask(server, "b")
            assert (status, answer["error"]["code"]) == (429, "overloaded")
            assert "MiB" in answer["error"]["message"]
            assert loaded(server) == {"a"}
        until(lambda: ask(server, "b")[0] == 200, what="room for b")
        assert loaded(server) == {"b"}
        assert server.get("/readyz")[0] == 200, "a request for the default model brings it back"
        assert ask(server, None)[1]["model"] == "a"


def test_a_pinned_model_stays_until_it_is_unpinned(serve: Callable[..., Server], home: Path) -> None:
    with serve(1) as server:
        run(home, "models", "pin", "a")
        listed = {each["name"]: each for each in json.loads(run(home, "models", "list", "--json"))}
        assert (listed["a"]["state"], listed["a"]["pinned"], listed["b"]["state"]) == ("ready", True, None)
        assert "pinned" in run(home, "models", "list")
        status, answer = ask(server, "b")
        assert (status, answer["error"]["code"]) == (400, "model_too_large")
        assert "pinned models hold" in answer["error"]["message"]
        run(home, "models", "unpin", "a")
        assert ask(server, "b")[0] == 200
        assert server.post("/admin/models/pin", {"model": "unknown"})[1]["error"]["code"] == "model_not_found"


def test_an_idle_model_is_unloaded_after_its_time(serve: Callable[..., Server]) -> None:
    with serve(2, models__idle_seconds=0.5, models__pinned="a") as server:
        assert ask(server, "b")[0] == 200
        with EventStream(server.url, "/v1/completions", {**LONG, "model": "b"}) as stream:
            events = list(stream.events())
        assert "error" not in events[-1], "0.8 seconds of answering are not idle"
        until(lambda: loaded(server) == {"a"}, what="the unload of b")
        unloads = until(lambda: metric(server, "mlx_serving_model_unloads_total"), what="the metric")
        assert set(unloads) == {'{model="b",reason="idle"}'}


def test_a_load_delays_no_token_of_another_model(served: Server) -> None:
    with EventStream(served.url, "/v1/completions", {**LONG, "model": "a", "max_tokens": 5000}) as stream:
        stream.next_event()
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(ask, served, "b")
            during = 0
            for _ in stream.events():
                during += 1
                if other.done():
                    break
        assert other.result()[0] == 200
        assert during > 20, "tokens came while b was loaded"


def test_models_that_are_started_with_the_server_are_told_as_loading_until_they_serve(home: Path) -> None:
    settings = {"models__default": "a", "models__preload": "b", "generation__engine": "scripted"}
    with Server(home, ready=False, **settings) as server:
        told: set[tuple[str, str]] = set()

        def all_ready() -> bool:
            models = server.get("/v1/models")[1]["data"]
            seen = {(model["id"], model["state"]) for model in models if model["id"] in ("a", "b")}
            told.update(seen)
            return seen == {("a", "ready"), ("b", "ready")}

        until(all_ready, seconds=120, what="both models")
    assert {state for _, state in told} == {"loading", "ready"}


def test_without_loading_on_demand_a_stored_model_is_refused(serve: Callable[..., Server]) -> None:
    with serve(1, models__load_on_demand="false") as server:
        status, answer = ask(server, "b")
        assert (status, answer["error"]["code"]) == (404, "model_not_loaded")
        status, answer = server.post("/admin/models/load", {"model": "b"})
        assert answer["error"]["code"] == "model_too_large", "nothing would bring the default model back"
        assert loaded(server) == {"a"}


def test_a_waiting_request_keeps_to_its_deadline_and_may_be_cancelled(serve: Callable[..., Server]) -> None:
    with serve(2) as server:
        status, answer = ask(server, "b", {**SHORT, "timeout": 0.01})
        assert (status, answer["error"]["code"]) == (504, "deadline_exceeded")
        until(lambda: loaded(server) == {"a", "b"}, what="the load that was begun")


def test_a_model_that_cannot_be_loaded_is_told_and_costs_nobody_their_place(served: Server, home: Path) -> None:
    broken = home / "models" / "broken"
    shutil.copytree(home / "models" / "a", broken)
    try:
        assert ask(served, "b")[0] == 200
        (broken / "config.json").write_text("{}")
        status, answer = served.post("/admin/models/load", {"model": "broken"})
        assert (status, answer["error"]["code"]) == (500, "model_load_failed")
        assert loaded(served) == {"a", "b"}
    finally:
        shutil.rmtree(broken)


def test_a_model_that_was_fetched_meanwhile_is_found(served: Server, home: Path) -> None:
    assert ask(served, "new")[1]["error"]["code"] == "model_not_found"
    shutil.copytree(home / "models" / "a", home / "models" / "new")
    try:
        assert ask(served, "new")[0] == 200
    finally:
        shutil.rmtree(home / "models" / "new")


def test_tokenising_waits_for_the_model_too(served: Server) -> None:
    status, answer = served.post("/tokenize", {"text": "ab", "model": "b"})
    assert (status, answer["count"]) == (200, 2)


def test_an_unloaded_model_that_is_asked_for_meanwhile_comes_back(served: Server) -> None:
    with ThreadPoolExecutor(4) as pool:
        unloads = [pool.submit(served.post, "/admin/models/unload", {"model": "a"}) for _ in range(2)]
        asked = [pool.submit(ask, served, "a") for _ in range(2)]
        statuses = {each.result()[0] for each in asked}
        assert statuses == {200}
        assert {each.result()[0] for each in unloads} <= {200, 404}


def test_requests_choose_adapters_and_wrong_ones_are_refused_by_name(served: Server) -> None:
    status, answer = ask(served, "b:own")
    assert (status, answer["model"]) == (200, "b:own")
    assert "b:own" in {entry["id"] for entry in served.get("/v1/models")[1]["data"]}
    status, answer = ask(served, "a:own")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    assert "adapter for b" in answer["error"]["message"]
    assert ask(served, "nothing:own")[0] == 404


def test_adapters_are_added_and_removed_while_the_server_runs(served: Server, home: Path) -> None:
    trained = str(home / "trained")
    run(home, "adapters", "add", trained, "--base", "a", "--name", "new")
    assert ask(served, "a:new")[0] == 200
    assert [each["name"] for each in json.loads(run(home, "adapters", "list", "--json"))] == ["new", "own"]
    refused = served.post("/admin/adapters/add", {"folder": trained, "base": "a", "name": "other"})
    assert (refused[0], refused[1]["error"]["code"]) == (403, "untrusted_path")
    weights = AdapterStore(home).show("a", "new").weights
    weights.write_bytes(weights.read_bytes()[:-10])
    listed = served.get("/admin/adapters")[1]
    assert [each["id"] for each in listed["data"]] == ["b:own"]
    assert [(each["id"], str(weights) in each["error"]) for each in listed["damaged"]] == [("a:new", True)]
    assert served.post("/admin/adapters/remove", {"adapter": "a:new"})[0] == 200
    assert ask(served, "a:new")[0] == 404


def test_rows_of_one_server_answer_with_their_own_adapters(serve: Callable[..., Server]) -> None:
    greedy = {"prompt": "hello", "max_tokens": 24, "temperature": 0, "ignore_eos": True}

    def text(model: str) -> str:
        status, answer = ask(server, model, greedy)
        assert (status, answer.get("model")) == (200, model), answer
        return str(answer["choices"][0]["text"])

    with serve(2, generation__engine="mlx", models__default="b", generation__max_rows=8) as server:
        plain, adapted = text("b"), text("b:own")
        assert plain != adapted
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(text, ["b", "b:own", "b", "b:own"])) == [plain, adapted, plain, adapted]
