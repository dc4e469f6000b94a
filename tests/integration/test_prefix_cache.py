"""The prefix cache as users meet it: two replicas of a real model, warm prompts, chats, salts, a restart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.server import Server
from support.wait import until

pytestmark = pytest.mark.integration

SYSTEM = "You answer for the support of a shop that sells bicycles and all that belongs to them. " * 8
HEADER = "x-anthropic-billing-header: cc_version=2.1.100.7b4; cc_entrypoint=cli; cch={}; \n"
SETTINGS: dict[str, Any] = {
    "models__replicas": 2,
    "models__warm_prompts": "support=@support.txt",
    # Less than a block: an answer that has ended and still counts as running must not decide.
    "batching__load_tokens": 16,
}


@pytest.fixture(scope="module")
def server(serving_home: Path) -> Iterator[Server]:
    (serving_home / "support.txt").write_text(SYSTEM, encoding="utf-8")
    with Server(serving_home, **SETTINGS) as started:
        until(lambda: started.log().count("prompt warmed") == 2, seconds=120, what="two warmed replicas")
        yield started


def ask(server: Server, *turns: str, system: str = SYSTEM, **more: Any) -> dict[str, Any]:
    """The answer to a conversation of the user's and the assistant's turns."""
    messages = [{"role": "system", "content": system}]
    messages += [{"role": ("user", "assistant")[index % 2], "content": turn} for index, turn in enumerate(turns)]
    body = {"messages": messages, "max_tokens": 8, "temperature": 0, **more}
    status, answer = server.post("/v1/chat/completions", body)
    assert status == 200, answer
    return dict(answer)


def cached(answer: dict[str, Any]) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


def stats(server: Server) -> list[dict[str, Any]]:
    return list(server.get("/admin/cache")[1]["data"])


def total(server: Server, name: str) -> int:
    return sum(int(each[name]) for each in stats(server))


def test_the_first_request_finds_a_warm_prompt(server: Server) -> None:
    answer = ask(server, "Hello")
    assert cached(answer) > 100
    assert answer["usage"]["prompt_tokens"] - cached(answer) < 16


def test_a_header_that_changes_at_every_turn_changes_nothing(server: Server) -> None:
    plain = ask(server, "Which tyres?")
    for value in ("eb6c6", "00000"):
        answer = ask(server, "Which tyres?", system=HEADER.format(value) + SYSTEM)
        assert answer["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]
        assert answer["choices"][0]["message"] == plain["choices"][0]["message"]
        assert cached(answer) > 100


def test_a_chat_stays_with_the_replica_that_knows_it(server: Server) -> None:
    turns: list[str] = []
    reused = prompted = 0
    hits = [each["hits"] for each in stats(server)]
    for number in range(5):
        turns.append(f"Turn {number}: tell me more about the brakes of my bicycle. " * 4)
        answer = ask(server, *turns, system=SYSTEM + "This is a chat.")
        turns.append(answer["choices"][0]["message"]["content"])
        if number:
            reused, prompted = reused + cached(answer), prompted + answer["usage"]["prompt_tokens"]
    grown = [each["hits"] - before for each, before in zip(stats(server), hits, strict=True)]
    assert sorted(grown) == [0, 5]
    assert reused / prompted > 0.6, "what is new in a turn is about a sixth of it"


def test_another_salt_shares_nothing(server: Server) -> None:
    assert cached(ask(server, "Hello", cache_salt="someone")) == 0
    assert cached(ask(server, "Hello", cache_salt="someone")) > 100


def test_several_choices_report_what_each_of_them_found(server: Server) -> None:
    system = SYSTEM + "Several choices."
    first, second = (ask(server, "Hello there", system=system, n=2, temperature=1) for _ in range(2))
    assert cached(first) < cached(second) < second["usage"]["prompt_tokens"]
    assert second["usage"]["prompt_tokens"] - cached(second) <= 2


def test_clearing_forgets_and_warming_brings_back(server: Server) -> None:
    until(lambda: total(server, "disk_bytes") > 0, what="something on disk")
    (each, _) = server.post("/admin/cache/clear", {"tier": "memory"})[1]["data"]
    assert (each["tokens"], each["bytes"]) == (0, 0)
    assert total(server, "disk_bytes") > 0
    assert [(one["tokens"], one["disk_bytes"]) for one in server.post("/admin/cache/clear", {})[1]["data"]] == [
        (0, 0)
    ] * 2
    assert cached(ask(server, "Hello")) == 0
    server.post("/admin/cache/clear", {})
    warmed = server.post("/admin/cache/warm", {"prompt": "support"})[1]["data"]
    assert [one["tokens"] > 100 for one in warmed] == [True, True]
    assert cached(ask(server, "Hello")) > 100
    assert total(server, "hit_tokens") > 0


def test_what_is_on_disk_survives_a_restart(serving_home: Path) -> None:
    settings = {**SETTINGS, "models__replicas": 1, "models__warm_prompts": ""}
    with Server(serving_home, **settings) as first:
        ask(first, "What is a derailleur?")
        until(lambda: total(first, "disk_tokens") > 100, what="the prompt on disk")
    with Server(serving_home, **settings) as second:
        answer = ask(second, "What is a derailleur?")
        assert cached(answer) > 100, json.dumps(stats(second))
        assert total(second, "disk_hit_tokens") > 100
