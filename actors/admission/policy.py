"""Who gets in: checks that need no tokenizer before rendering, and checks of the rendered prompt after it. Pure."""

from __future__ import annotations

import attrs

from mlx_serving.actors.admission.conversation import check_tools
from mlx_serving.actors.admission.prompt import Prompt
from mlx_serving.actors.errors import (
    ActorUnavailable,
    ContextOverflow,
    InvalidParameter,
    Overloaded,
    UnsupportedParameter,
)
from mlx_serving.actors.messages.admission import GenerationRequested
from mlx_serving.actors.messages.batching import SequenceQueued
from mlx_serving.actors.messages.values import ModelInfo, Priority, pack_ids
from mlx_serving.config.schema import Admission

TOP_LOGPROBS_LIMIT = 20


@attrs.define
class Gate:
    """What admission knows when a request knocks."""

    waiting: int = 0
    """Choices that were let in and have no token yet, being rendered or queued."""
    shed: tuple[Priority, ...] = ()
    shed_retry_after: float = 1.0
    shed_reason: str = ""
    draining: bool = False
    seconds_per_request: float = 0.5
    """Recent mean time for one waiting sequence to leave the queue: the basis of retry-after."""


def admit(asked: GenerationRequested, gate: Gate, limits: Admission) -> None:
    """Raise the ServingError that says why this request may not come in now; return when it may."""
    if gate.draining:
        raise ActorUnavailable("the server is shutting down", retry_after=5.0)
    if asked.priority in gate.shed:
        raise Overloaded(
            f"requests of priority {asked.priority!r} are refused for now: {gate.shed_reason}",
            retry_after=gate.shed_retry_after,
        )
    if gate.waiting + asked.n > limits.max_waiting:
        wait = round(max(1.0, gate.waiting * gate.seconds_per_request), 1)
        raise Overloaded(f"{gate.waiting} requests are waiting already", retry_after=min(wait, 60.0))
    _check_parameters(asked, limits)


def _check_parameters(asked: GenerationRequested, limits: Admission) -> None:
    given = sum(each is not None for each in (asked.messages, asked.prompt, asked.prompt_ids))
    if given != 1:
        raise InvalidParameter("give exactly one of messages and prompt", field="prompt")
    if not 1 <= asked.n <= limits.max_n:
        raise InvalidParameter(f"n must be from 1 to {limits.max_n}", field="n")
    if asked.window < 1:
        raise InvalidParameter("window must be at least 1", field="window")
    sampling, stopping = asked.sampling, asked.stopping
    rules = (
        ("temperature", 0 <= sampling.temperature <= 100, "from 0 to 100"),
        ("top_p", 0 < sampling.top_p <= 1, "above 0, at most 1"),
        ("top_k", sampling.top_k >= 0, "0 or more"),
        ("min_p", 0 <= sampling.min_p <= 1, "from 0 to 1"),
        ("seed", sampling.seed is None or -(2**63) <= sampling.seed < 2**63, "a signed integer of 64 bits"),
        ("repetition_penalty", 0.01 <= sampling.repetition_penalty <= 10, "from 0.01 to 10"),
        ("presence_penalty", -2 <= sampling.presence_penalty <= 2, "from -2 to 2"),
        ("frequency_penalty", -2 <= sampling.frequency_penalty <= 2, "from -2 to 2"),
        ("top_logprobs", 0 <= sampling.top_logprobs <= TOP_LOGPROBS_LIMIT, f"from 0 to {TOP_LOGPROBS_LIMIT}"),
        (
            "logit_bias",
            all(-100 <= bias <= 100 for bias in sampling.logit_bias.values()),
            "of values from -100 to 100",
        ),
        ("max_tokens", stopping.max_tokens is None or stopping.max_tokens >= 1, "1 or more"),
        ("stop", all(stopping.stop), "without empty strings"),
        ("thinking_budget", asked.thinking_budget is None or asked.thinking_budget >= 0, "0 or more"),
        ("timeout", asked.timeout is None or asked.timeout > 0, "above 0"),
    )
    for field, holds, right in rules:
        if not holds:
            raise InvalidParameter(f"{field} must be {right}", field=field)
    check_tools(asked.tool_use)
    for field, is_given in (
        ("tools", bool(asked.tool_use.tools)),
        ("chat_template_kwargs", asked.template_arguments != "{}"),
        ("reasoning_effort", asked.reasoning_effort is not None),
        ("thinking_budget", asked.thinking_budget is not None),
    ):
        if is_given and asked.messages is None:
            raise UnsupportedParameter(f"{field}: only for messages, not for a plain prompt", field=field)


def sequences(
    asked: GenerationRequested,
    prompt: Prompt,
    model: ModelInfo,
    kv_budget: int,
    limits: Admission,
    now: float,
    deadline: float,
) -> list[SequenceQueued]:
    """One sequence a choice, with its answer bounded and its cache predicted (ids are given by the registry).

    Raises ContextOverflow when the prompt does not fit the context, or its cache could never fit `kv_budget` bytes;
    InvalidParameter when it is empty or names tokens that the model does not have.
    """
    _check_prompt(asked, prompt.ids, model)
    count = len(prompt.ids)
    longest = min(asked.stopping.max_tokens or limits.default_max_tokens, model.context_length - count)
    kv_bytes = _predicted_bytes(count, longest, model, kv_budget)
    packed, predicted = pack_ids(prompt.ids), pack_ids(prompt.prediction[: model.context_length])
    stopping = attrs.evolve(asked.stopping, max_tokens=longest)
    return [
        SequenceQueued(
            sequence_id=0,
            model=model.name,
            prompt_ids=packed,
            sampling=asked.sampling,
            stopping=stopping,
            kv_bytes=kv_bytes,
            queued_at=now,
            index=index,
            priority=asked.priority,
            tenant=asked.tenant,
            deadline=deadline,
            window=asked.window,
            cache_salt=cache_salt(asked, limits),
            segments=prompt.segments,
            format=prompt.format,
            guidance=asked.guidance if prompt.guidance is None else prompt.guidance,
            prediction_ids=predicted,
            speculation=asked.speculation,
        )
        for index in range(asked.n)
    ]


def cache_salt(asked: GenerationRequested, limits: Admission) -> str:
    """What a request's cached prefixes are shared under: its own salt, and its tenant where tenants are kept apart.

    No tenant and salt can be put together to give those of another.
    """
    if limits.cache_per_tenant:
        return f"{len(asked.tenant)}:{asked.tenant}{asked.cache_salt}"
    return f":{asked.cache_salt}" if asked.cache_salt else ""


def _predicted_bytes(prompt_tokens: int, new_tokens: int, model: ModelInfo, budget: int) -> int:
    """The room of its row. Where that alone is more than the budget, its tokens may still fit: then it runs alone."""
    kv_bytes = (prompt_tokens + new_tokens) * model.kv_bytes_per_token
    if kv_bytes > budget:
        raise ContextOverflow(
            f"{prompt_tokens} prompt tokens and {new_tokens} new ones need {kv_bytes >> 20} MiB of cache and the "
            f"server has {budget >> 20} MiB; shorten the prompt or lower max_tokens",
            field="max_tokens",
        )
    return model.cache_bytes(prompt_tokens + new_tokens)


def _check_prompt(asked: GenerationRequested, prompt_ids: list[int], model: ModelInfo) -> None:
    field = "messages" if asked.messages is not None else "prompt"
    if not prompt_ids:
        raise InvalidParameter(f"{field} is empty", field=field)
    if len(prompt_ids) >= model.context_length:
        raise ContextOverflow(
            f"the prompt has {len(prompt_ids)} tokens and the context of {model.name} is {model.context_length}",
            field=field,
        )
    if asked.prompt_ids is not None and max(prompt_ids) >= model.vocab_size:
        raise InvalidParameter(f"token ids must be below {model.vocab_size}", field=field)
    unknown = [token for token in asked.sampling.logit_bias if not 0 <= token < model.vocab_size]
    if unknown:
        raise InvalidParameter(
            f"logit_bias names token {unknown[0]}; ids are below {model.vocab_size}", field="logit_bias"
        )
