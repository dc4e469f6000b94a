"""The methods on prefix caches."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from support.fake_client import CACHE, FakeClient
from support.stdio_host import connected

from mlx_serving.actors.messages import admission as asked

pytestmark = pytest.mark.anyio


async def test_caches_are_shown_cleared_and_warmed() -> None:
    client = FakeClient()
    async with connected(client) as host:
        stats = await host.ask("cache_stats", {})
        cleared = await host.ask("cache_clear", {"tier": "memory", "model_id": "tiny"})
        warmed = await host.ask("cache_warm", {"prompt": "support"})
    assert stats["result"] == {"replicas": [{"replica": "replica-1", "model_id": "tiny", **attrs.asdict(CACHE)}]}
    assert cleared["result"] == stats["result"]
    assert warmed["result"]["prompts"][0]["tokens"] == 900
    assert client.asked[:3] == [
        asked.CacheStatsRequested(),
        asked.CacheClearRequested("memory", "tiny"),
        asked.CacheWarmRequested("support"),
    ]


@pytest.mark.parametrize(
    ("method", "params", "field"),
    [
        ("cache_clear", {"tier": "tape"}, "tier"),
        ("cache_stats", {"tier": "all"}, "tier"),
        ("cache_warm", {"prompt": 1}, "prompt"),
    ],
)
async def test_what_is_wrong_is_named(method: str, params: dict[str, Any], field: str) -> None:
    async with connected(FakeClient()) as host:
        answer = await host.ask(method, params)
    assert (answer["error"]["code"], answer["error"]["data"]["field"]) == (-32602, field)


async def test_a_salt_reaches_the_runtime() -> None:
    client = FakeClient()
    async with connected(client) as host:
        await host.ask("generate", {"model_id": "tiny", "prompt": "Hello", "stream_id": "s", "cache_salt": "team-a"})
        await host.end_of("s")
    assert client.streams[0].request.cache_salt == "team-a"
