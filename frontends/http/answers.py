"""Answers of the actors as bodies of the OpenAI API. Pure: messages in, JSON values out."""

from __future__ import annotations

import secrets
import time
from typing import Any

import attrs

from mlx_serving.actors.messages.frontend import Delta
from mlx_serving.actors.messages.values import SequenceEnd, Timings, TokenLogprob, Usage, total_drafts
from mlx_serving.frontends.http.calls import WholeCalls
from mlx_serving.frontends.http.logprobs import chat_logprobs, completion_logprobs
from mlx_serving.frontends.http.openai import Call


@attrs.frozen
class Heading:
    """What every body and chunk of one answer begins with. `created` is in seconds since the epoch."""

    id: str
    created: int
    model: str
    fingerprint: str
    is_chat: bool

    @classmethod
    def of(cls, call: Call, model: str, fingerprint: str) -> Heading:
        prefix = "chatcmpl-" if call.is_chat else "cmpl-"
        return cls(prefix + secrets.token_hex(12), int(time.time()), model, fingerprint, call.is_chat)

    def fields(self, *, chunk: bool) -> dict[str, Any]:
        kind = "chat.completion" if self.is_chat else "text_completion"
        return {
            "id": self.id,
            "object": kind + ".chunk" if chunk and self.is_chat else kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def usage_body(usage: Usage) -> dict[str, Any]:
    drafts = usage.drafts
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "accepted_prediction_tokens": drafts.accepted_prediction,
            "rejected_prediction_tokens": drafts.rejected_prediction,
            "accepted_draft_tokens": drafts.accepted,
            "rejected_draft_tokens": drafts.rejected,
        },
    }


def timings_body(timings: Timings) -> dict[str, float]:
    """An extension: where the time of the request went, in seconds."""
    return {f"{name}_seconds": round(value, 6) for name, value in attrs.asdict(timings).items()}


def total_usage(usages: list[Usage]) -> Usage:
    """Of several prompts together."""
    return Usage(
        sum(usage.prompt_tokens for usage in usages),
        sum(usage.completion_tokens for usage in usages),
        sum(usage.cached_tokens for usage in usages),
        sum(usage.reasoning_tokens for usage in usages),
        total_drafts(usage.drafts for usage in usages),
    )


def slowest(timings: list[Timings]) -> Timings:
    """Of several prompts side by side: the longest time of each phase."""
    return Timings(*(max(column) for column in zip(*map(attrs.astuple, timings), strict=True)))


@attrs.define
class _Choice:
    """One answer as it grows."""

    texts: list[str] = attrs.field(factory=list)
    reasoning: list[str] = attrs.field(factory=list)
    calls: WholeCalls = attrs.field(factory=WholeCalls)
    logprobs: list[TokenLogprob] = attrs.field(factory=list)
    end: SequenceEnd | None = None


class WholeAnswer:
    """Gathers the deltas of a request that is not streamed."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._choices = [_Choice() for _ in range(call.choices)]
        if call.echoes:
            for index, choice in enumerate(self._choices):
                choice.texts.append(call.echoes[index // call.n])

    async def add(self, deltas: list[Delta]) -> None:
        """Asynchronous because that is what consumers of deltas are."""
        for delta in deltas:
            choice = self._choices[delta.index]
            choice.texts.append(delta.text)
            choice.reasoning.append(delta.reasoning)
            choice.calls.add(delta.tool_calls)
            choice.logprobs.extend(delta.logprobs)
            choice.end = delta.end or choice.end

    def body(self, heading: Heading, usage: Usage, timings: Timings) -> dict[str, Any]:
        """The body of the response, once every choice has ended."""
        return {
            **heading.fields(chunk=False),
            "choices": [self._choice_body(index, choice) for index, choice in enumerate(self._choices)],
            "usage": usage_body(usage),
            "timings": timings_body(timings),
        }

    def _choice_body(self, index: int, choice: _Choice) -> dict[str, Any]:
        text = "".join(choice.texts)
        if self._call.is_chat:
            content: dict[str, Any] = {"message": _message(choice, text)}
            logprobs = chat_logprobs(choice.logprobs)
        else:
            content = {"text": text}
            logprobs = completion_logprobs(choice.logprobs, 0)
        return {
            "index": index,
            **content,
            "logprobs": logprobs if self._call.logprobs else None,
            "finish_reason": choice.end.reason if choice.end else None,
            "stop_reason": choice.end.matched if choice.end else None,
        }


def _message(choice: _Choice, text: str) -> dict[str, Any]:
    """Reasoning and calls are there only where there are any; beside calls, no content is null."""
    calls, reasoning = choice.calls.body(), "".join(choice.reasoning)
    message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return message
