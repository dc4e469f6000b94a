"""GET /health, /livez, /readyz and /metrics: the state of the runtime, asked for each time."""

from __future__ import annotations

from typing import Any

import attrs
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from mlx_serving.actors.errors import ServingError
from mlx_serving.actors.messages.admission import MetricsRequested, StatusRequested
from mlx_serving.actors.messages.frontend import StatusReported
from mlx_serving.frontends.client import Client
from mlx_serving.frontends.http.replies import JsonReply

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Probes:
    """Endpoints for those who watch the server; the runtime has `patience` seconds to answer."""

    def __init__(self, client: Client, patience: float) -> None:
        self._client = client
        self._patience = patience

    async def livez(self, request: Request) -> Response:
        """200 while the runtime answers at all."""
        status = await self._status()
        if isinstance(status, ServingError):
            return JsonReply({"status": "dead", "reason": status.message}, 503)
        return JsonReply({"status": "alive"})

    async def readyz(self, request: Request) -> Response:
        """200 only when the default model serves."""
        status = await self._status()
        if isinstance(status, ServingError):
            return JsonReply({"ready": False, "reason": status.message}, 503)
        ready = status.ready and not status.draining
        return JsonReply({"ready": ready, "reason": _reason(status)}, 200 if ready else 503)

    async def health(self, request: Request) -> Response:
        """Everything, in one body."""
        status = await self._status()
        if isinstance(status, ServingError):
            return JsonReply({"status": "unavailable", "ready": False, "reason": status.message}, 503)
        body = _health(status)
        return JsonReply(body, 200 if body["ready"] else 503)

    async def metrics(self, request: Request) -> Response:
        """Prometheus text."""
        reported = await self._client.ask(MetricsRequested())
        return PlainTextResponse(reported.text, media_type=METRICS_TYPE)

    async def _status(self) -> StatusReported | ServingError:
        try:
            status: StatusReported = await self._client.ask(StatusRequested(), timeout=self._patience)
        except ServingError as error:
            return error
        return status


def _reason(status: StatusReported) -> str:
    return "the server is shutting down" if status.draining and not status.reason else status.reason


def _health(status: StatusReported) -> dict[str, Any]:
    ready = status.ready and not status.draining
    state = "draining" if status.draining else "ok" if ready else "unavailable"
    models = [
        {
            "id": model.info.name,
            "state": model.state,
            "is_default": model.is_default,
            "replicas": model.replicas,
            "context_length": model.info.context_length,
            "memory_bytes": model.memory_bytes,
            "pinned": model.pinned,
            "kernels": model.info.kernels,
        }
        for model in status.models
    ]
    return {
        "status": state,
        "ready": ready,
        "reason": _reason(status),
        "version": status.version,
        "uptime_seconds": status.uptime,
        "models": models,
        "actors": [attrs.asdict(actor) for actor in status.actors],
        "queue": attrs.asdict(status.queue),
        "active_streams": status.active_streams,
        "shedding": list(status.shedding),
        "memory_rss_bytes": status.memory_rss,
        "restarts": status.restarts,
    }
