"""The admin calls on LoRA adapters."""

from __future__ import annotations

from typing import Any

import attrs
from starlette.requests import Request
from starlette.responses import Response

from mlx_serving.actors.messages.admission import AdapterAddRequested, AdapterRemoveRequested, AdaptersRequested
from mlx_serving.actors.messages.frontend import AdaptersListed
from mlx_serving.actors.messages.values import AdapterInfo
from mlx_serving.frontends.client import Client
from mlx_serving.frontends.http import parameters
from mlx_serving.frontends.http.body import read_json_body
from mlx_serving.frontends.http.openai import checked
from mlx_serving.frontends.http.replies import JsonReply


class Adapters:
    """Endpoints that list, add and remove adapters; requests choose one as the model `base:name`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def list(self, request: Request) -> Response:
        """Every adapter that can be used, and apart from them those that cannot, with the reason."""
        listed: AdaptersListed = await self._client.ask(AdaptersRequested())
        damaged = [{"id": each.adapter, "object": "adapter", "error": each.reason} for each in listed.damaged]
        return JsonReply({"object": "list", "data": [_adapter(each) for each in listed.adapters], "damaged": damaged})

    async def add(self, request: Request) -> Response:
        """Copy an adapter into the store; answers once requests may choose it."""
        given = await read_json_body(
            request.scope, request.receive, lambda body: checked(parameters.ADAPTER_ADD_BODY, body)
        )
        added: AdaptersListed = await self._client.ask(AdapterAddRequested(**given))
        return JsonReply(_adapter(added.adapters[0]))

    async def remove(self, request: Request) -> Response:
        """Remove an adapter from the store; rows that use it go on."""
        given = await read_json_body(
            request.scope, request.receive, lambda body: checked(parameters.ADAPTER_REMOVE_BODY, body)
        )
        await self._client.ask(AdapterRemoveRequested(**given))
        return JsonReply({"id": given["adapter"], "object": "adapter", "removed": True})


def _adapter(info: AdapterInfo) -> dict[str, Any]:
    return {"id": f"{info.base}:{info.name}", "object": "adapter", **attrs.asdict(info)}
