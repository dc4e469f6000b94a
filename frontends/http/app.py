"""The HTTP application: routes, and what stands before them."""

from __future__ import annotations

import ipaddress
from functools import partial
from importlib import metadata

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from mlx_serving.config.schema import Http, Settings
from mlx_serving.frontends.client import Client
from mlx_serving.frontends.http.adapters import Adapters
from mlx_serving.frontends.http.cache import Cache
from mlx_serving.frontends.http.generations import Generations, Running
from mlx_serving.frontends.http.middleware import ApiKey, BodyLimit, HostGuard, NoAdmin, Outermost
from mlx_serving.frontends.http.models import Models
from mlx_serving.frontends.http.openai import Parser
from mlx_serving.frontends.http.openapi import document
from mlx_serving.frontends.http.probes import Probes
from mlx_serving.frontends.http.replies import JsonReply

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class App(Starlette):
    """Starlette's routing behind our own layers alone: its error layers would answer in another shape."""

    def __init__(self, client: Client, settings: Settings, running: Running) -> None:
        """`running` collects the generations under way, for whoever stops the server."""
        super().__init__(routes=_routes(client, settings, running), middleware=_middleware(settings.http))

    def build_middleware_stack(self) -> ASGIApp:
        app: ASGIApp = self.router
        for layer, args, kwargs in reversed(self.user_middleware):
            app = layer(app, *args, **kwargs)
        return app


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _routes(client: Client, settings: Settings, running: Running) -> list[Route]:
    version = metadata.version("mlx-serving")
    parser = Parser(settings.admission.max_n, settings.admission.stream_window)
    generations = partial(
        Generations,
        client,
        running,
        heartbeat_seconds=settings.http.heartbeat_seconds,
        fingerprint=f"mlx-serving-{version}",
    )
    models = Models(client, settings)
    adapters = Adapters(client)
    cache = Cache(client, settings)
    probes = Probes(client, settings.http.probe_seconds)
    description = JsonReply(document(parser, version, needs_key=bool(settings.http.api_key)))

    async def openapi(request: Request) -> Response:
        return description

    return [
        Route("/v1/chat/completions", generations(parser.chat), methods=["POST"]),
        Route("/v1/completions", generations(parser.completion), methods=["POST"]),
        Route("/v1/models", models.list, methods=["GET"]),
        Route("/v1/models/{model:path}", models.retrieve, methods=["GET"]),
        Route("/tokenize", models.tokenize, methods=["POST"]),
        Route("/detokenize", models.detokenize, methods=["POST"]),
        Route("/admin/models/load", models.load, methods=["POST"]),
        Route("/admin/models/unload", models.unload, methods=["POST"]),
        Route("/admin/models/pin", models.pin, methods=["POST"]),
        Route("/admin/models/unpin", models.unpin, methods=["POST"]),
        Route("/admin/adapters", adapters.list, methods=["GET"]),
        Route("/admin/adapters/add", adapters.add, methods=["POST"]),
        Route("/admin/adapters/remove", adapters.remove, methods=["POST"]),
        Route("/admin/cache", cache.stats, methods=["GET"]),
        Route("/admin/cache/clear", cache.clear, methods=["POST"]),
        Route("/admin/cache/warm", cache.warm, methods=["POST"]),
        Route("/health", probes.health, methods=["GET"]),
        Route("/livez", probes.livez, methods=["GET"]),
        Route("/readyz", probes.readyz, methods=["GET"]),
        Route("/metrics", probes.metrics, methods=["GET"]),
        Route("/openapi.json", openapi, methods=["GET"]),
    ]


def _middleware(http: Http) -> list[Middleware]:
    stack = [Middleware(Outermost)]
    if is_loopback(http.host):
        hosts = LOOPBACK_NAMES | {name.lower() for name in (http.host, *http.allowed_hosts)}
        stack.append(Middleware(HostGuard, hosts=hosts))
    elif not http.api_key:
        stack.append(Middleware(NoAdmin))
    if http.api_key:
        stack.append(Middleware(ApiKey, key=http.api_key))
    return [*stack, Middleware(BodyLimit, most=http.max_body_bytes)]
