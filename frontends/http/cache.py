"""The admin calls on prefix caches: what they hold, emptying them, warming the prompts of the settings."""

from __future__ import annotations

from typing import Any

import attrs
from starlette.requests import Request
from starlette.responses import Response

from mlx_serving.actors.messages.admission import CacheClearRequested, CacheStatsRequested, CacheWarmRequested
from mlx_serving.actors.messages.frontend import CacheReported, CacheWarmed, ReplicaCache
from mlx_serving.config.schema import Settings
from mlx_serving.frontends.client import Client
from mlx_serving.frontends.http import parameters
from mlx_serving.frontends.http.body import read_json_body
from mlx_serving.frontends.http.kinds import Object
from mlx_serving.frontends.http.problems import Problems
from mlx_serving.frontends.http.replies import JsonReply


class Cache:
    """Endpoints about the prefix caches of all replicas, or of one model's."""

    def __init__(self, client: Client, settings: Settings) -> None:
        self._client = client
        self._warm_timeout = settings.admission.request_timeout + settings.transport.ask_timeout

    async def stats(self, request: Request) -> Response:
        """What each replica's cache holds, and what it was good for."""
        asked = CacheStatsRequested(**_checked(parameters.CACHE_QUERY, dict(request.query_params)))
        return _report(await self._client.ask(asked))

    async def clear(self, request: Request) -> Response:
        """Empty a tier or all; answers with what is held then."""
        asked = await read_json_body(request.scope, request.receive, _clear)
        return _report(await self._client.ask(asked))

    async def warm(self, request: Request) -> Response:
        """Prefill warm prompts; answers when they are in the caches."""
        asked = await read_json_body(request.scope, request.receive, _warm)
        answer: CacheWarmed = await self._client.ask(asked, timeout=self._warm_timeout)
        return JsonReply({"object": "list", "data": [attrs.asdict(prompt) for prompt in answer.prompts]})


def _clear(body: Any) -> CacheClearRequested:
    return CacheClearRequested(**_checked(parameters.CACHE_CLEAR_BODY, body))


def _warm(body: Any) -> CacheWarmRequested:
    return CacheWarmRequested(**_checked(parameters.CACHE_WARM_BODY, body))


def _checked(kind: Object, given: Any) -> dict[str, Any]:
    problems = Problems()
    checked: dict[str, Any] = kind.check(given, "", problems)
    problems.raise_found()
    return checked


def _report(answer: CacheReported) -> JsonReply:
    return JsonReply({"object": "list", "data": [_replica(each) for each in answer.replicas]})


def _replica(cache: ReplicaCache) -> dict[str, Any]:
    return {"replica": cache.replica, "model": cache.model, **attrs.asdict(cache.stats)}
