"""The rendering pool: chat template and tokenizer beside admission's loop, so that one huge prompt delays nobody."""

from __future__ import annotations

import itertools
import os
import queue
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import attrs

from mlx_serving.actors.admission.answer_format import ParserChoice, answer_format, tool_guidance
from mlx_serving.actors.admission.conversation import chat_text, template_arguments
from mlx_serving.actors.admission.prompt import Prompt
from mlx_serving.actors.admission.segments import message_ends
from mlx_serving.actors.errors import InvalidParameter
from mlx_serving.actors.json_schema.guidance import check as check_guidance
from mlx_serving.actors.messages.admission import GenerationRequested
from mlx_serving.actors.messages.values import ChatMessage, unpack_ids
from mlx_serving.actors.models.tokenizer import TextTokenizer
from mlx_serving.native.heap import trim

HUGE_TOKENS = 200_000
"""Tokens of a text from which `give_back` acts."""

Landed = Callable[[Any, BaseException | None], None]
"""Called on admission's thread with a job's result, or with what it raised."""


class RenderingPool:
    """Runs jobs on threads and hands their results back to the thread that calls `deliver`."""

    def __init__(self, threads: int, wake: Callable[[], None]) -> None:
        self._executor = ThreadPoolExecutor(threads or os.cpu_count() or 1, thread_name_prefix="rendering")
        self._wake = wake
        self._results: queue.SimpleQueue[tuple[Landed, Future[Any]]] = queue.SimpleQueue()

    def submit(self, job: Callable[[], Any], landed: Landed) -> None:
        """From admission's thread."""
        self._executor.submit(job).add_done_callback(lambda future: self._post(landed, future))

    def _post(self, landed: Landed, future: Future[Any]) -> None:
        self._results.put((landed, future))
        self._wake()

    def deliver(self) -> None:
        """Call back for every finished job."""
        while not self._results.empty():
            landed, future = self._results.get()
            error = future.exception() if not future.cancelled() else RuntimeError("cancelled")
            landed(None if error else future.result(), error)

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)


def rendered(
    tokenizer: TextTokenizer, asked: GenerationRequested, parsers: ParserChoice, *, with_segments: bool
) -> Prompt:
    """Everything of a request that takes its time: the prompt, and what can be told of its guidance."""
    if asked.guidance is not None:
        check_guidance(asked.guidance)
    prompt = _prompt(tokenizer, asked, parsers, with_segments)
    if asked.prediction is not None:
        prompt = attrs.evolve(prompt, prediction=tokenizer.encode(asked.prediction, add_special_tokens=False))
    give_back(len(prompt.ids) + len(prompt.prediction))
    return prompt


def give_back(tokens: int) -> None:
    """Return to the system what a tokenizer has freed, some 200 bytes a token: the C library would keep it."""
    if tokens > HUGE_TOKENS:
        trim()


def _prompt(tokenizer: TextTokenizer, asked: GenerationRequested, parsers: ParserChoice, with_segments: bool) -> Prompt:
    """A request's prompt, whichever form it has."""
    if asked.messages is not None:
        return _rendered_chat(tokenizer, asked, asked.messages, parsers, with_segments)
    if asked.prompt is not None:
        return Prompt(tokenizer.encode(asked.prompt, add_special_tokens=asked.add_special_tokens))
    packed = asked.prompt_ids or b""
    if len(packed) % 4:
        raise InvalidParameter("packed token ids must be 4 bytes each", field="prompt_ids")
    return Prompt(unpack_ids(packed))


def _rendered_chat(
    tokenizer: TextTokenizer,
    asked: GenerationRequested,
    messages: tuple[ChatMessage, ...],
    parsers: ParserChoice,
    with_segments: bool,
) -> Prompt:
    arguments = template_arguments(tokenizer.chat, asked)
    text = chat_text(tokenizer, messages, True, arguments)
    form = answer_format(asked, parsers, text)
    guidance = tool_guidance(asked, form, tokenizer) if form is not None and form.calls else None
    if not with_segments:
        return Prompt(tokenizer.encode(text, add_special_tokens=False), format=form, guidance=guidance)
    ends = message_ends(text, messages, lambda turns, asks: chat_text(tokenizer, turns, asks, arguments))
    return Prompt(*tokenizer.encode_with_offsets(text, ends), format=form, guidance=guidance)


def warm_ids(tokenizer: TextTokenizer, system: str) -> list[int]:
    """What conversations with this system prompt begin with, up to the user's first words."""
    renderings = [chat_text(tokenizer, (ChatMessage("system", system), ChatMessage("user", word))) for word in "0a"]
    first, second = (tokenizer.encode(text, add_special_tokens=False) for text in renderings)
    return [one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))]
