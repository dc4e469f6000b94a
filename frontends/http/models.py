"""GET /v1/models, POST /tokenize and /detokenize, and the admin calls on models."""

from __future__ import annotations

import difflib
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mlx_serving.actors.errors import ModelNotFound, ModelNotLoaded
from mlx_serving.actors.messages.admission import (
    ModelLoadRequested,
    ModelPinRequested,
    ModelsRequested,
    ModelUnloadRequested,
)
from mlx_serving.actors.messages.frontend import (
    Detokenized,
    ModelLoaded,
    ModelsListed,
    ServedModel,
    Tokenized,
)
from mlx_serving.actors.messages.values import unpack_ids
from mlx_serving.config.schema import Settings
from mlx_serving.frontends.client import Client
from mlx_serving.frontends.http import openai
from mlx_serving.frontends.http.body import read_json_body
from mlx_serving.frontends.http.replies import JsonReply


class Models:
    """Endpoints that ask about models or load and unload them."""

    def __init__(self, client: Client, settings: Settings) -> None:
        self._client = client
        self._load_timeout = settings.supervision.load_seconds
        self._unload_timeout = settings.supervision.drain_seconds + settings.transport.ask_timeout

    async def list(self, request: Request) -> Response:
        """Served models, the default one first, those that a request would load, and their adapters.

        `stored` names all that could be loaded.
        """
        listed: ModelsListed = await self._client.ask(ModelsRequested())
        models = sorted((*listed.models, *listed.available), key=lambda model: not model.is_default)
        data = [entry for model in models for entry in _with_adapters(model)]
        return JsonReply({"object": "list", "data": data, "stored": listed.stored})

    async def retrieve(self, request: Request) -> Response:
        """One served model."""
        name = request.path_params["model"]
        listed: ModelsListed = await self._client.ask(ModelsRequested())
        entries = [entry for model in (*listed.models, *listed.available) for entry in _with_adapters(model)]
        for entry in entries:
            if entry["id"] == name:
                return JsonReply(entry)
        if name in listed.stored:
            raise ModelNotLoaded(f"Model {name} is stored and not loaded", model=name)
        raise _not_found(name, list(dict.fromkeys([*(entry["id"] for entry in entries), *listed.stored])))

    async def tokenize(self, request: Request) -> Response:
        """Token ids of a text or a conversation."""
        question = await read_json_body(request.scope, request.receive, openai.tokenize)
        answer: Tokenized = await self._client.ask(question)
        tokens = unpack_ids(answer.token_ids)
        return JsonReply(
            {
                "model": answer.model,
                "tokens": tokens,
                "token_strings": answer.token_strings,
                "count": len(tokens),
                "max_model_len": answer.context_length,
            }
        )

    async def detokenize(self, request: Request) -> Response:
        """Text of token ids."""
        question = await read_json_body(request.scope, request.receive, openai.detokenize)
        answer: Detokenized = await self._client.ask(question)
        return JsonReply({"model": answer.model, "text": answer.text})

    async def load(self, request: Request) -> Response:
        """Load a model; answers when it serves."""
        name = await read_json_body(request.scope, request.receive, openai.model_name)
        answer: ModelLoaded = await self._client.ask(ModelLoadRequested(name), timeout=self._load_timeout)
        return JsonReply(_model(answer.model))

    async def unload(self, request: Request) -> Response:
        """Unload a model; answers when its last stream has ended and its memory is free."""
        name = await read_json_body(request.scope, request.receive, openai.model_name)
        await self._client.ask(ModelUnloadRequested(name), timeout=self._unload_timeout)
        return JsonReply({"id": name, "object": "model", "state": "unloaded"})

    async def pin(self, request: Request) -> Response:
        """Keep a model loaded."""
        return await self._pin(request, True)

    async def unpin(self, request: Request) -> Response:
        """Let a model be unloaded again when it is idle or in the way."""
        return await self._pin(request, False)

    async def _pin(self, request: Request, pinned: bool) -> Response:
        name = await read_json_body(request.scope, request.receive, openai.model_name)
        await self._client.ask(ModelPinRequested(name, pinned))
        return JsonReply({"id": name, "object": "model", "pinned": pinned})


def _model(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.info.name,
        "object": "model",
        "created": int(model.loaded_at),
        "owned_by": "mlx-serving",
        "state": model.state,
        "is_default": model.is_default,
        "replicas": model.replicas,
        "context_length": model.info.context_length,
        "max_model_len": model.info.context_length,
        "architecture": model.info.architecture,
        "parameter_count": model.info.parameter_count,
        "dtype": model.info.dtype,
        "quantization_bits": model.info.quantization_bits,
        "memory_bytes": model.memory_bytes,
        "last_used": int(model.last_used),
        "pinned": model.pinned,
        "adapters": model.adapters,
    }


def _with_adapters(model: ServedModel) -> list[dict[str, Any]]:
    """The model, and one entry more for each adapter that a request may choose with it."""
    entry = _model(model)
    adapted = [
        {**entry, "id": f"{entry['id']}:{name}", "is_default": False, "adapters": (), "parent": entry["id"]}
        for name in model.adapters
    ]
    return [entry, *adapted]


def _not_found(name: str, known: list[str]) -> ModelNotFound:
    shown = name[:100]
    near = difflib.get_close_matches(shown, known, n=3, cutoff=0.4) or known[:5]
    hint = f"; there is {', '.join(near)}" if near else ""
    return ModelNotFound(f"No model {shown}{hint}", model=shown)
