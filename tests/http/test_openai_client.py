"""The official OpenAI client, unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel
from support.fake_client import WORDS, FakeClient, call_a_tool

from mlx_serving.actors.errors import Overloaded

Serve = Callable[..., str]

TEXT = "".join(WORDS)
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def fake() -> FakeClient:
    return FakeClient()


@pytest.fixture
def client(serve: Serve, fake: FakeClient) -> Iterator[OpenAI]:
    url = serve(fake, api_key="secret")
    with OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as client:
        yield client


def test_chat(client: OpenAI, fake: FakeClient) -> None:
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}],
        temperature=0.5,
        seed=7,
        stop=["\n"],
        n=2,
        logprobs=True,
        top_logprobs=2,
        user="ann",
        max_completion_tokens=20,
        extra_body={"top_k": 5, "priority": "high"},
    )
    assert [choice.message.content for choice in answer.choices] == [TEXT, TEXT]
    assert answer.usage is not None
    assert answer.usage.total_tokens == 13
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [token.token for token in logprobs.content] == list(WORDS)
    assert len(logprobs.content[0].top_logprobs) == 2
    request = fake.streams[0].request
    assert (request.sampling.seed, request.sampling.top_k, request.stopping.stop) == (7, 5, ("\n",))


def test_streamed_chat_with_usage(client: OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            stream_options={"include_usage": True},
            n=2,
            logprobs=True,
        )
    )
    texts = ["", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [TEXT, TEXT]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


def test_the_streaming_helper_gathers_the_same_answer(client: OpenAI) -> None:
    with client.chat.completions.stream(model="tiny", messages=[{"role": "user", "content": "hi"}]) as stream:
        answer = stream.get_final_completion()
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"


def test_an_answer_goes_back_as_the_next_turn(client: OpenAI, fake: FakeClient) -> None:
    first = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}])
    turns = [{"role": "user", "content": "hi"}, first.choices[0].message, {"role": "user", "content": "and?"}]
    client.chat.completions.create(model="tiny", messages=turns)  # type: ignore[arg-type]
    assert [turn.content for turn in fake.streams[1].request.messages or ()] == ["hi", TEXT, "and?"]


def test_completions(client: OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt=["a", "b"], n=2, logprobs=1, seed=1, stop="\n")
    assert [choice.text for choice in answer.choices] == [TEXT] * 4
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.text_offset == [0, 5, 7, 12]


def test_streamed_completions(client: OpenAI) -> None:
    chunks = list(
        client.completions.create(
            model="tiny", prompt="a", stream=True, stream_options={"include_usage": True}, logprobs=0
        )
    )
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == TEXT
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == 5


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "mlx-serving"


def test_errors_have_the_types_of_the_client(client: OpenAI, fake: FakeClient) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hi"}], extra_body={"tempature": 1}
        )
    assert refused.value.param == "tempature"
    assert refused.value.code == "unsupported_parameter"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("none")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    fake.refusal = Overloaded("too much", retry_after=1)
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}], stream=True)


class Weather(BaseModel):
    """The weather of a city."""

    city: str


@pytest.fixture
def caller(serve: Serve) -> Iterator[OpenAI]:
    """A client of a model that calls a tool."""
    url = serve(FakeClient(call_a_tool))
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


TOOL = openai.pydantic_function_tool(Weather, name="weather")


def test_a_call_is_parsed_and_goes_back_as_the_next_turn(caller: OpenAI) -> None:
    answer = caller.chat.completions.parse(model="tiny", messages=MESSAGES, tools=[TOOL])  # type: ignore[arg-type]
    message = answer.choices[0].message
    assert (message.content, answer.choices[0].finish_reason) == ("Well.", "tool_calls")
    assert message.reasoning_content == "so it is"  # type: ignore[attr-defined]
    assert message.tool_calls is not None
    assert message.tool_calls[0].function.parsed_arguments == Weather(city="Köln")
    turns = [*MESSAGES, message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "rain"}]
    caller.chat.completions.parse(model="tiny", messages=turns, tools=[TOOL])  # type: ignore[arg-type]


def test_a_streamed_call_is_put_together_by_the_clients_helper(caller: OpenAI) -> None:
    with caller.chat.completions.stream(model="tiny", messages=MESSAGES, tools=[TOOL]) as stream:  # type: ignore[arg-type]
        kinds = {event.type for event in stream}
        message = stream.get_final_completion().choices[0].message
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    assert message.tool_calls is not None
    assert message.tool_calls[0].function.parsed_arguments == Weather(city="Köln")
