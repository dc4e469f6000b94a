"""Two replicas of one model: both serve, one survives the other, and both are warmed without a trace in the figures."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.server import Server
from support.wait import until

pytestmark = pytest.mark.integration

SETTINGS: dict[str, Any] = {
    "generation__engine": "scripted",
    "models__replicas": 2,
    "models__warm_prompts": "support=You answer for the support of a shop.",
}
BODY = {"prompt": "a b c", "max_tokens": 20, "ignore_eos": True}


@pytest.fixture(scope="module")
def pair(serving_home: Path) -> Iterator[Server]:
    with Server(serving_home, **SETTINGS) as server:
        until(lambda: replicas(server) == 2, what="both replicas")
        yield server


def replicas(server: Server) -> int:
    (model,) = server.get("/v1/models")[1]["data"]
    return int(model["replicas"])


def pids(server: Server) -> list[int]:
    actors = server.get("/health")[1]["actors"]
    return [actor["pid"] for actor in actors if actor["name"].startswith("replica-") and actor["state"] == "ready"]


def test_many_requests_are_answered_alike_whichever_replica_takes_them(pair: Server) -> None:
    alone = pair.post("/v1/completions", {**BODY, "seed": 3})[1]["choices"][0]["text"]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: pair.post("/v1/completions", {**BODY, "seed": 3})[1], range(32)))
    assert {answer["choices"][0]["text"] for answer in answers} == {alone}


def test_an_engine_without_a_cache_says_so(pair: Server) -> None:
    caches = pair.get("/admin/cache")[1]["data"]
    assert [(each["model"], each["enabled"], each["tokens"]) for each in caches] == [("smollm2-135m", False, 0)] * 2
    assert pair.post("/admin/cache/clear", {"tier": "memory"})[1]["data"] == caches
    assert pair.get("/admin/cache?model=none")[0] == 404


def test_warm_prompts_are_prefilled_on_every_replica_and_counted_as_nobodys_request(pair: Server) -> None:
    before = requests_and_tokens(pair)
    status, answer = pair.post("/admin/cache/warm", {"prompt": "support"})
    assert status == 200
    warmed = answer["data"]
    assert [(each["name"], each["model"]) for each in warmed] == [("support", "smollm2-135m")] * 2
    assert len({each["replica"] for each in warmed}) == 2
    assert warmed[0]["tokens"] == warmed[1]["tokens"] > 10
    assert requests_and_tokens(pair) == before
    health = pair.get("/health")[1]
    assert (health["active_streams"], health["queue"]["waiting"]) == (0, 0)


def test_they_were_prefilled_at_start(pair: Server) -> None:
    until(lambda: pair.log().count("prompt warmed") >= 2, what="both warmed prompts in the log")


def test_an_unknown_warm_prompt_is_refused_by_its_name(pair: Server) -> None:
    status, answer = pair.post("/admin/cache/warm", {"prompt": "suport"})
    assert (status, answer["error"]["param"]) == (400, "prompt")
    assert "support" in answer["error"]["message"]


def test_one_replica_goes_on_while_the_other_is_replaced(pair: Server) -> None:
    first, second = pids(pair)
    os.kill(first, signal.SIGKILL)
    for _ in range(5):
        assert pair.post("/v1/completions", BODY)[0] == 200
    until(lambda: len(pids(pair)) == 2 and first not in pids(pair), what="the new replica")
    assert second in pids(pair)
    until(lambda: replicas(pair) == 2, what="both replicas")
    assert pair.get("/readyz")[0] == 200


def test_a_warm_prompt_that_is_written_wrong_ends_the_start_with_its_reason(serving_home: Path) -> None:
    wrong = {**SETTINGS, "models__warm_prompts": "support"}
    with pytest.raises(AssertionError, match=r"models\.warm_prompts"), Server(serving_home, **wrong):
        pass


def requests_and_tokens(server: Server) -> list[str]:
    names = ("requests_total", "requests_accepted_total", "prompt_tokens_total", "completion_tokens_total")
    text = str(server.get("/metrics")[1])
    return [line for line in text.splitlines() if line.startswith(tuple(f"mlx_serving_{name}" for name in names))]
