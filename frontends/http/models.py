"""GET /v1/models, POST /tokenize and /detokenize, and the admin calls on models."""

from __future__ import annotations

import difflib
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mlx_serving.actors.errors import ModelNotFound, ModelNotLoaded
from mlx_serving.actors.messages.admission import ModelLoadRequested, ModelsRequested, ModelUnloadRequested
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
        """Served models, the default one first; `stored` names those that could be loaded."""
        listed: ModelsListed = await self._client.ask(ModelsRequested())
        served = sorted(listed.models, key=lambda model: not model.is_default)
        body = {"object": "list", "data": [_model(model) for model in served], "stored": listed.stored}
        return JsonReply(body)

    async def retrieve(self, request: Request) -> Response:
        """One served model."""
        name = request.path_params["model"]
        listed: ModelsListed = await self._client.ask(ModelsRequested())
        for model in listed.models:
            if model.info.name == name:
                return JsonReply(_model(model))
        if name in listed.stored:
            raise ModelNotLoaded(f"Model {name} is stored and not loaded", model=name)
        raise _not_found(name, [model.info.name for model in listed.models] + [*listed.stored])

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
    }


def _not_found(name: str, known: list[str]) -> ModelNotFound:
    shown = name[:100]
    near = difflib.get_close_matches(shown, known, n=3, cutoff=0.4) or known[:5]
    hint = f"; there is {', '.join(near)}" if near else ""
    return ModelNotFound(f"No model {shown}{hint}", model=shown)
