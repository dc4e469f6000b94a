"""The admin calls on prefix caches."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import httpx2
import pytest
from support.fake_client import CACHE, FakeClient

from mlx_serving.actors.errors import InvalidParameter
from mlx_serving.actors.messages import admission as asked

Serve = Callable[..., str]
Browse = Callable[[str], httpx2.Client]


def test_the_caches_of_all_replicas_or_of_one_model_are_shown(serve: Serve, browse: Browse) -> None:
    client = FakeClient()
    browser = browse(serve(client))
    shown = browser.get("/admin/cache").json()
    assert shown["data"] == [{"replica": "replica-1", "model": "tiny", **attrs.asdict(CACHE)}]
    assert browser.get("/admin/cache", params={"model": "tiny"}).json() == shown
    assert client.asked == [asked.CacheStatsRequested(), asked.CacheStatsRequested("tiny")]


def test_a_tier_is_cleared_and_what_is_left_is_shown(serve: Serve, browse: Browse) -> None:
    client = FakeClient()
    browser = browse(serve(client))
    assert browser.post("/admin/cache/clear", json={}).json()["data"][0]["tokens"] == CACHE.tokens
    assert browser.post("/admin/cache/clear", json={"tier": "disk", "model": "tiny"}).status_code == 200
    assert client.asked == [asked.CacheClearRequested(), asked.CacheClearRequested("disk", "tiny")]


def test_named_prompts_are_warmed(serve: Serve, browse: Browse) -> None:
    client = FakeClient()
    warmed = browse(serve(client)).post("/admin/cache/warm", json={"prompt": "support"}).json()
    assert warmed["data"][0]["tokens"] == 900
    assert client.asked == [asked.CacheWarmRequested("support")]


def test_an_unknown_name_is_refused(serve: Serve, browse: Browse) -> None:
    client = FakeClient()
    client.answers[asked.CacheWarmRequested] = InvalidParameter("no warm prompt is called x", field="prompt")
    answer = browse(serve(client)).post("/admin/cache/warm", json={"prompt": "x"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/admin/cache/clear", {"tier": "tape"}, "tier"),
        ("/admin/cache/clear", {"name": "x"}, "name"),
        ("/admin/cache/warm", {"prompt": 1}, "prompt"),
    ],
)
def test_what_is_wrong_is_named(url: str, browse: Browse, path: str, body: object, param: str) -> None:
    answer = browse(url).post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_an_unknown_query_parameter_is_named(url: str, browse: Browse) -> None:
    answer = browse(url).get("/admin/cache", params={"modle": "tiny"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "modle")


def test_a_salt_and_the_cached_tokens_cross_the_api(serve: Serve, browse: Browse) -> None:
    client = FakeClient()
    body = {"messages": [{"role": "user", "content": "Hi"}], "cache_salt": "team-a"}
    answer = browse(serve(client)).post("/v1/chat/completions", json=body).json()
    assert client.streams[0].request.cache_salt == "team-a"
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 3
