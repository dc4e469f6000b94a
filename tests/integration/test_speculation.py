"""Speculation behind the whole runtime: predictions and a draft model, in usage and metrics."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest
from support.server import Server
from support.wait import until

pytestmark = [pytest.mark.integration, pytest.mark.model]

MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [
    {"role": "user", "content": "Count from one to thirty in words, separated by commas."}
]


@pytest.fixture(scope="module")
def server(serving_home: Path) -> Iterator[Server]:
    """Its draft model is the model itself."""
    with Server(serving_home, generation__speculation__draft_model="smollm2-135m") as running:
        yield running


def counter(server: Server, name: str) -> float:
    text = httpx2.get(f"{server.url}/metrics", timeout=30).text
    return sum(float(value) for value in re.findall(rf"^mlx_serving_{name}_total{{.*}} (\S+)$", text, re.MULTILINE))


def test_a_prediction_is_told_of_in_usage_and_changes_no_word(
    client: openai.OpenAI, model: str, server: Server
) -> None:
    plain = client.chat.completions.create(
        model=model, messages=MESSAGES, temperature=0, max_tokens=80, extra_body={"speculation": False}
    )
    text = plain.choices[0].message.content or ""
    fast = client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        temperature=0,
        max_tokens=80,
        prediction={"type": "content", "content": text},
    )
    assert fast.choices[0].message.content == text
    assert plain.usage is not None
    assert plain.usage.completion_tokens_details is not None
    assert plain.usage.completion_tokens_details.accepted_prediction_tokens == 0
    assert fast.usage is not None
    details = fast.usage.completion_tokens_details
    assert details is not None
    taken = details.accepted_prediction_tokens or 0
    assert taken > 20
    accepted = until(lambda: (found := counter(server, "accepted_draft_tokens")) >= taken and found, what="the metric")
    assert accepted <= counter(server, "draft_tokens")
