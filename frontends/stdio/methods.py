"""The table of methods: name, parameters, and what answers it."""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import psutil

from mlx_serving.actors.errors import CallerError
from mlx_serving.actors.messages.admission import (
    CacheClearRequested,
    CacheStatsRequested,
    CacheWarmRequested,
    MetricsRequested,
    ModelLoadRequested,
    ModelsRequested,
    ModelUnloadRequested,
    StatusRequested,
)
from mlx_serving.frontends.stdio import requests, results
from mlx_serving.frontends.stdio.batches import each
from mlx_serving.frontends.stdio.calls import Call
from mlx_serving.frontends.stdio.generating import batch_generate, cancel, generate
from mlx_serving.frontends.stdio.parameters import Parameter, read
from mlx_serving.frontends.stdio.session import Session

Handler = Callable[[Session, dict[str, Any], Call], Awaitable[Any]]
"""Answers a call with checked parameters; raises what the host is told."""


@attrs.frozen
class Method:
    """One method. `urgent`: answered even when no further request may be pending."""

    parameters: tuple[Parameter, ...]
    handle: Handler
    urgent: bool = False


async def info(session: Session, values: dict[str, Any], call: Call) -> Any:
    """Versions, what works, and the memory of the runtime's processes in bytes."""
    mlx = _version("mlx")
    return {
        "version": _version("mlx-serving"),
        "mlx_version": mlx,
        "mlx_lm_version": _version("mlx-lm"),
        "protocol": "json-rpc-2.0",
        "capabilities": list(METHODS),
        "mlx_supported": bool(mlx),
        "memory": await asyncio.to_thread(_memory),
    }


async def state(session: Session, values: dict[str, Any], call: Call) -> Any:
    return results.state(await session.client.ask(StatusRequested()), session.host_name)


async def telemetry(session: Session, values: dict[str, Any], call: Call) -> Any:
    return results.telemetry((await session.client.ask(MetricsRequested())).text)


async def health(session: Session, values: dict[str, Any], call: Call) -> Any:
    return results.health(await session.client.ask(StatusRequested()))


async def list_models(session: Session, values: dict[str, Any], call: Call) -> Any:
    return results.models(await session.client.ask(ModelsRequested()))


async def load_model(session: Session, values: dict[str, Any], call: Call) -> Any:
    """Answered when the model serves. With `local_path`, the folder is served as the host's `model_id`."""
    model_id = values["model_id"]
    asked = ModelLoadRequested(values.get("local_path", model_id))
    try:
        answer = await session.client.ask(asked, timeout=session.settings.supervision.load_seconds)
    except CallerError as error:
        error.field = "local_path" if "local_path" in values else error.field
        raise
    session.learn(model_id, answer.model.info.name)
    return results.loaded(model_id, answer.model)


async def unload_model(session: Session, values: dict[str, Any], call: Call) -> Any:
    """Answered when the model's streams have ended and its memory is free."""
    model_id = values["model_id"]
    asked = ModelUnloadRequested(session.served_name(model_id))
    await session.client.ask(asked, timeout=session.settings.admission.request_timeout)
    session.forget(model_id)
    return {"success": True}


async def tokenize(session: Session, values: dict[str, Any], call: Call) -> Any:
    return await _tokenize(session, values)


async def batch_tokenize(session: Session, values: dict[str, Any], call: Call) -> Any:
    async def one(request: Any, path: str) -> Any:
        return await _tokenize(session, read(request, requests.TOKENIZE, path))

    return await each(values["requests"], one, session.wire.line_limit)


async def detokenize(session: Session, values: dict[str, Any], call: Call) -> Any:
    question = requests.detokenization(values, session.served_name(values["model_id"]))
    return {"text": (await session.client.ask(question)).text}


async def cache_stats(session: Session, values: dict[str, Any], call: Call) -> Any:
    return results.caches(await session.client.ask(CacheStatsRequested(_loaded(session, values))))


async def cache_clear(session: Session, values: dict[str, Any], call: Call) -> Any:
    asked = CacheClearRequested(values.get("tier", "all"), _loaded(session, values))
    return results.caches(await session.client.ask(asked))


async def cache_warm(session: Session, values: dict[str, Any], call: Call) -> Any:
    """Answered when the prompts are in the caches."""
    asked = CacheWarmRequested(values.get("prompt"), _loaded(session, values))
    return results.warmed(await session.client.ask(asked, timeout=session.settings.admission.request_timeout))


async def shutdown(session: Session, values: dict[str, Any], call: Call) -> Any:
    """Cancel everything, tell the host so, answer last, then end."""
    await session.cancel_everything(but=call)
    call.after_answer(session.stopping.set)
    return {"success": True}


METHODS = {
    "runtime/info": Method(requests.NONE, info),
    "runtime/state": Method(requests.NONE, state),
    "runtime/telemetry": Method(requests.NONE, telemetry),
    "health": Method(requests.NONE, health),
    "list_models": Method(requests.NONE, list_models),
    "load_model": Method(requests.LOAD, load_model),
    "unload_model": Method(requests.MODEL, unload_model),
    "generate": Method(requests.GENERATE, generate),
    "batch_generate": Method(requests.BATCH, batch_generate),
    "chat": Method(requests.CHAT, generate),
    "cancel": Method(requests.CANCEL, cancel, urgent=True),
    "tokenize": Method(requests.TOKENIZE, tokenize),
    "batch_tokenize": Method(requests.BATCH, batch_tokenize),
    "detokenize": Method(requests.DETOKENIZE, detokenize),
    "cache_stats": Method(requests.CACHE_STATS, cache_stats),
    "cache_clear": Method(requests.CACHE_CLEAR, cache_clear),
    "cache_warm": Method(requests.CACHE_WARM, cache_warm),
    "shutdown": Method(requests.NONE, shutdown, urgent=True),
}

_NO_DRAFTS = "is not supported: a draft model is named at the start, by --draft-model, and checked there"
_NO_VISION = "is not supported: this runtime serves text models only"
UNSUPPORTED = {
    "check_draft": _NO_DRAFTS,
    "batch_check_draft": _NO_DRAFTS,
    "load_vision_model": _NO_VISION,
    "generate_with_image": _NO_VISION,
}
"""Methods that hosts know and that this runtime does not have."""


def _loaded(session: Session, values: dict[str, Any]) -> str | None:
    """The model that a question is about; None for all."""
    return session.served_name(values["model_id"]) if "model_id" in values else None


async def _tokenize(session: Session, values: dict[str, Any]) -> dict[str, Any]:
    question = requests.tokenization(values, session.served_name(values["model_id"]))
    return results.tokenized(await session.client.ask(question))


def _version(distribution: str) -> str:
    """The installed version, read without importing anything; empty if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _memory() -> dict[str, int]:
    """Bytes of this process and its children."""
    host = psutil.Process()
    total = {"rss": 0, "vms": 0}
    for process in (host, *host.children(recursive=True)):
        try:
            memory = process.memory_info()
        except psutil.Error:  # it has just ended
            continue
        total = {"rss": total["rss"] + memory.rss, "vms": total["vms"] + memory.vms}
    return total
