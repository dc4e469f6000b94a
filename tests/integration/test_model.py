"""The real model behind the whole runtime, through the official OpenAI client."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

pytestmark = [pytest.mark.integration, pytest.mark.model]

PROMPT = "The capital of France is"


def test_a_chat_streams_with_usage_and_a_true_finish_reason(client: openai.OpenAI, model: str) -> None:
    messages: list[openai.types.chat.ChatCompletionMessageParam] = [
        {"role": "user", "content": "What is the capital of France?"}
    ]
    with client.chat.completions.create(
        model=model, messages=messages, temperature=0, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "Paris" in text
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_completion_stops_before_the_stop_string(client: openai.OpenAI, model: str) -> None:
    free = client.completions.create(model=model, prompt=PROMPT, max_tokens=8, temperature=0)
    assert free.choices[0].finish_reason == "length"
    text = free.choices[0].text
    stop = text[4:7]
    stopped = client.completions.create(model=model, prompt=PROMPT, max_tokens=8, temperature=0, stop=[stop])
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].text == text[: text.index(stop)]


def test_logprobs_belong_to_the_tokens(client: openai.OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=4, temperature=0, logprobs=3)
    choice = answer.choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert choice.logprobs.token_logprobs is not None
    assert choice.logprobs.top_logprobs is not None
    assert "".join(choice.logprobs.tokens) == choice.text
    for token, logprob, top in zip(
        choice.logprobs.tokens, choice.logprobs.token_logprobs, choice.logprobs.top_logprobs, strict=True
    ):
        assert logprob is not None
        assert 0 < math.exp(logprob) <= 1
        assert max(top, key=lambda each: top[each]) == token


def test_a_seed_repeats_its_answer_in_any_company(client: openai.OpenAI, model: str) -> None:
    def ask(seed: int) -> list[str]:
        answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=6, temperature=1.2, seed=seed, n=2)
        return [choice.text for choice in answer.choices]

    alone = ask(7)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(ask, [7, 8, 7, 9]))
    assert together[0] == together[2] == alone
    assert alone[0] != alone[1]
    assert len({*alone, *together[1], *together[3]}) > 2
