"""Models, tokens, admin calls and the probes."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import httpx2
import pytest
from support.fake_client import MODEL, FakeClient, served, status

from mlx_serving.actors.errors import ActorUnavailable, ModelNotFound
from mlx_serving.actors.messages import admission as asked
from mlx_serving.actors.messages.frontend import AdaptersListed, DamagedAdapter, ModelsListed

Serve = Callable[..., str]
Browse = Callable[[str], httpx2.Client]


def test_models_are_listed_with_their_context_length(url: str, browse: Browse) -> None:
    browser = browse(url)
    listed = browser.get("/v1/models").json()
    (model,) = listed["data"]
    assert (model["id"], model["state"], model["owned_by"]) == ("tiny", "ready", "mlx-serving")
    assert (model["context_length"], model["max_model_len"], model["created"]) == (2048, 2048, 1_700_000_000)
    assert listed["stored"] == ["other"]
    assert browser.get("/v1/models/tiny").json() == model


def test_an_unknown_model_is_told_with_near_names(url: str, browse: Browse) -> None:
    browser = browse(url)
    response = browser.get("/v1/models/org/tinny")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert "tiny" in browser.get("/v1/models/tinny").json()["error"]["message"]
    assert browser.get("/v1/models/other").json()["error"]["code"] == "model_not_loaded"


def test_text_becomes_tokens_and_text_again(url: str, browse: Browse) -> None:
    browser = browse(url)
    answer = browser.post("/tokenize", json={"text": "ab"}).json()
    assert (answer["tokens"], answer["count"], answer["max_model_len"]) == ([97, 98], 2, 2048)
    assert browser.post("/detokenize", json={"tokens": answer["tokens"]}).json()["text"] == "ab"


def test_a_question_that_is_refused_has_the_status_of_its_error(serve: Serve, browse: Browse) -> None:
    client = FakeClient()
    client.answers[asked.TokenizeRequested] = ModelNotFound("no model x", model="x")
    response = browse(serve(client)).post("/tokenize", json={"text": "ab", "model": "x"})
    assert (response.status_code, response.json()["error"]["model"]) == (404, "x")


def test_a_bug_is_answered_and_told_to_the_log(serve: Serve, browse: Browse, caplog: pytest.LogCaptureFixture) -> None:
    client = FakeClient()
    client.answers[asked.TokenizeRequested] = object()
    response = browse(serve(client)).post("/tokenize", json={"text": "ab"})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert "POST /tokenize broke" in caplog.text


def test_models_are_loaded_and_unloaded(serve: Serve, browse: Browse) -> None:
    client = FakeClient()
    browser = browse(serve(client))
    assert browser.post("/admin/models/load", json={"model": "tiny"}).json()["state"] == "ready"
    assert browser.post("/admin/models/unload", json={"model": "tiny"}).json()["state"] == "unloaded"
    assert client.asked == [asked.ModelLoadRequested("tiny"), asked.ModelUnloadRequested("tiny")]
    assert browser.post("/admin/models/load", json={"model": "tiny", "force": True}).status_code == 400


def test_models_that_a_request_would_load_and_adapters_are_listed_too(serve: Serve, browse: Browse) -> None:
    client = FakeClient()
    resting = attrs.evolve(served("stored"), info=attrs.evolve(MODEL, name="other"), is_default=False)
    adapted = attrs.evolve(served(), adapters=("sql",), memory_bytes=7, pinned=True, last_used=5.5)
    client.answers[asked.ModelsRequested] = ModelsListed((adapted,), ("other",), (resting,))
    browser = browse(serve(client))
    entries = {entry["id"]: entry for entry in browser.get("/v1/models").json()["data"]}
    assert list(entries) == ["tiny", "tiny:sql", "other"]
    assert (entries["other"]["state"], entries["tiny:sql"]["parent"]) == ("stored", "tiny")
    tiny = entries["tiny"]
    assert (tiny["memory_bytes"], tiny["pinned"], tiny["last_used"], tiny["adapters"]) == (7, True, 5, ["sql"])
    assert browser.get("/v1/models/tiny:sql").json() == entries["tiny:sql"]


def test_models_are_pinned_and_unpinned(serve: Serve, browse: Browse) -> None:
    client = FakeClient()
    browser = browse(serve(client))
    assert browser.post("/admin/models/pin", json={"model": "tiny"}).json()["pinned"] is True
    assert browser.post("/admin/models/unpin", json={"model": "tiny"}).json()["pinned"] is False
    assert client.asked == [asked.ModelPinRequested("tiny", True), asked.ModelPinRequested("tiny", False)]


def test_adapters_are_listed_added_and_removed(serve: Serve, browse: Browse) -> None:
    client = FakeClient()
    browser = browse(serve(client))
    (listed,) = browser.get("/admin/adapters").json()["data"]
    assert (listed["id"], listed["rank"], listed["form"]) == ("tiny:sql", 8, "mlx-lm")
    body = {"folder": "/adapters/sql", "base": "tiny", "name": "sql"}
    assert browser.post("/admin/adapters/add", json=body).json() == listed
    assert browser.post("/admin/adapters/remove", json={"adapter": "tiny:sql"}).json()["removed"] is True
    assert client.asked[1:] == [asked.AdapterAddRequested(**body), asked.AdapterRemoveRequested("tiny:sql")]
    assert browser.post("/admin/adapters/add", json={"folder": "x"}).json()["error"]["param"] == "base"


def test_a_damaged_adapter_is_listed_apart_with_its_reason(serve: Serve, browse: Browse) -> None:
    client = FakeClient()
    damaged = DamagedAdapter("tiny:cut", "/adapters/cut/adapters.safetensors is truncated")
    client.answers[asked.AdaptersRequested] = AdaptersListed((), (damaged,))
    assert browse(serve(client)).get("/admin/adapters").json() == {
        "object": "list",
        "data": [],
        "damaged": [{"id": "tiny:cut", "object": "adapter", "error": damaged.reason}],
    }


@pytest.mark.parametrize(
    ("ready", "reason", "draining", "code", "state"),
    [
        (True, "", False, 200, "ok"),
        (False, "tiny is loading", False, 503, "unavailable"),
        (True, "", True, 503, "draining"),
    ],
)
def test_readiness_is_asked_each_time(
    serve: Serve, browse: Browse, ready: bool, reason: str, draining: bool, code: int, state: str
) -> None:
    client = FakeClient()
    browser = browse(serve(client))
    assert browser.get("/readyz").status_code == 200
    client.answers[asked.StatusRequested] = status(ready=ready, reason=reason, draining=draining)
    answer = browser.get("/readyz")
    assert (answer.status_code, answer.json()["ready"]) == (code, code == 200)
    assert reason in answer.json()["reason"]
    health = browser.get("/health")
    assert (health.status_code, health.json()["status"]) == (code, state)
    assert health.json()["models"][0]["id"] == "tiny"
    assert browser.get("/livez").status_code == 200


def test_without_an_answer_of_the_runtime_nothing_is_well(serve: Serve, browse: Browse) -> None:
    client = FakeClient()
    client.answers[asked.StatusRequested] = ActorUnavailable("no answer to StatusRequested")
    browser = browse(serve(client))
    for path in ("/livez", "/readyz", "/health"):
        response = browser.get(path)
        assert (response.status_code, response.json()["reason"]) == (503, "no answer to StatusRequested")


def test_metrics_are_prometheus_text(url: str, browse: Browse) -> None:
    response = browse(url).get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert response.text.endswith("up 1\n")
