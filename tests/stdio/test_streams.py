"""Streams over real pipes: order and shape of notifications, one end each, and cancelling."""

from __future__ import annotations

import asyncio

import pytest
from support.fake_client import WORDS, FakeClient, FakeStream, Play, call_a_tool, ending
from support.stdio_host import Host, connected, settings, texts, until

from mlx_serving.actors.errors import (
    ContextOverflow,
    GenerationFailed,
    ReplicaLost,
    ServingError,
)
from mlx_serving.actors.messages import admission as asked
from mlx_serving.actors.messages.values import ChatMessage, Sampling, Stopping, TokenLogprob, Tool, ToolCall, ToolUse

pytestmark = pytest.mark.anyio

PROMPT = {"model_id": "tiny", "prompt": "Hello", "stream_id": "s"}
PIPE_BYTES = 64 << 10


def failing(error: ServingError) -> Play:
    async def play(stream: FakeStream) -> None:
        stream.push(0, "begun")
        await asyncio.sleep(0)
        stream.fail(error)

    return play


async def stay_silent(stream: FakeStream) -> None:
    await asyncio.Event().wait()


async def test_a_stream_is_chunks_then_stats_then_one_event() -> None:
    async with connected(FakeClient()) as host:
        answer = await host.ask("generate", PROMPT)
        notifications = await host.end_of("s")
        await host.ask("health", request_id="later")
    assert answer["result"]["stream_id"] == "s"
    assert answer["result"]["started_at"] > 1e9
    assert host.seen[0] == answer, "the answer comes before the first chunk"
    *chunks, stats, event = notifications
    assert [chunk["method"] for chunk in chunks] == ["stream.chunk"] * len(chunks)
    assert texts(chunks) == list(WORDS)
    assert stats == {
        "jsonrpc": "2.0",
        "method": "stream.stats",
        "params": {
            "stream_id": "s",
            "tokens_generated": 4,
            "tokens_per_second": 1000.0,
            "time_to_first_token": 0.003,
            "total_time": 0.01,
            "cached_tokens": 3,
        },
    }
    ended = {"stream_id": "s", "event": "completed", "finish_reason": "stop", "is_final": True}
    assert event == {"jsonrpc": "2.0", "method": "stream.event", "params": ended}
    assert host.seen[-1]["id"] == "later", "nothing follows the event"


async def test_a_lone_token_is_one_chunk_and_several_are_a_batch() -> None:
    taken = asyncio.Event()

    async def play(stream: FakeStream) -> None:
        stream.push(0, "one", tokens=(7,), logprobs=(TokenLogprob(7, "one", -0.5),))
        await taken.wait()
        stream.push(0, "two", tokens=(8,))
        stream.push(0, "", tokens=(9, 10))
        stream.push(0, "é", tokens=(11, 12))
        stream.push(0, "held back", tokens=())
        stream.push(0, "", tokens=(), end=ending())
        stream.finish()

    async with connected(FakeClient(play)) as host:
        await host.ask("generate", {**PROMPT, "logprobs": True})
        first = await host.receive()
        taken.set()
        batch = (await host.end_of("s"))[1]
    assert first["params"] == {
        "stream_id": "s",
        "token": "one",
        "token_id": 7,
        "logprob": -0.5,
        "is_final": False,
    }
    assert batch["params"] == {
        "stream_id": "s",
        "tokens": [
            {"token": "two", "token_id": 8},
            {"token": "", "token_id": 9},
            {"token": "", "token_id": 10},
            {"token": "", "token_id": 11},
            {"token": "é", "token_id": 12},
            {"token": "held back", "token_id": 12},
        ],
        "batch_size": 6,
        "is_batch": True,
    }


async def test_parameters_arrive_at_the_runtime() -> None:
    client = FakeClient()
    params = {
        **PROMPT,
        "max_tokens": 5,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 3,
        "min_p": 0.1,
        "seed": 1,
        "stop_sequences": ["a", "b"],
        "stop_token_ids": [1],
        "ignore_eos": True,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "repetition_penalty": 1.5,
        "priority": "high",
        "timeout": 5,
        "streaming": True,
    }
    async with connected(client) as host:
        await host.ask("generate", params)
    assert client.streams[0].request == asked.GenerationRequested(
        request_id=0,
        model="tiny",
        prompt="Hello",
        sampling=Sampling(
            temperature=0.0,
            top_p=0.5,
            top_k=3,
            min_p=0.1,
            seed=1,
            presence_penalty=1.0,
            frequency_penalty=-1.0,
            repetition_penalty=1.5,
        ),
        stopping=Stopping(max_tokens=5, stop=("a", "b"), stop_token_ids=(1,), ignore_eos=True),
        priority="high",
        timeout=5.0,
        window=settings().admission.stream_window,
    )


async def test_a_chat_goes_through_the_template() -> None:
    client = FakeClient()
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi", "name": "Ann"}]
    async with connected(client) as host:
        await host.ask("chat", {"model_id": "tiny", "messages": messages, "stream_id": "s"})
        assert texts(await host.end_of("s")) == list(WORDS)
    request = client.streams[0].request
    assert request.messages == (ChatMessage("system", "Be brief."), ChatMessage("user", "Hi", "Ann"))
    assert request.prompt is None


async def test_a_stream_without_an_id_gets_one() -> None:
    async with connected(FakeClient()) as host:
        answer = await host.ask("generate", {"model_id": "tiny", "prompt": "a"})
        assert texts(await host.end_of(answer["result"]["stream_id"])) == list(WORDS)


async def test_a_refused_request_has_no_stream() -> None:
    client = FakeClient(refusal=ContextOverflow("too long", field="prompt"))
    async with connected(client) as host:
        error = (await host.ask("generate", PROMPT))["error"]
        assert (error["code"], error["data"]["field"]) == (-32602, "prompt")
        client.refusal = None
        assert "result" in await host.ask("generate", PROMPT), "its id is free again"
        await host.end_of("s")


async def test_an_id_in_use_is_refused_and_its_stream_goes_on() -> None:
    go_on = asyncio.Event()

    async def play(stream: FakeStream) -> None:
        await go_on.wait()
        stream.finish()

    async with connected(FakeClient(play)) as host:
        await host.ask("generate", PROMPT)
        error = (await host.ask("generate", PROMPT))["error"]
        assert (error["code"], error["data"]["field"]) == (-32602, "stream_id")
        go_on.set()
        assert (await host.end_of("s"))[-1]["params"]["event"] == "completed"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ReplicaLost("its process died"), -32002),
        (GenerationFailed("not a number"), -32002),
        (ServingError("bug"), -32603),
    ],
)
async def test_a_stream_that_fails_ends_with_one_typed_event(error: ServingError, code: int) -> None:
    async with connected(FakeClient(failing(error))) as host:
        await host.ask("generate", PROMPT)
        *chunks, event = await host.end_of("s")
    assert texts(chunks) == ["begun"]
    assert event["params"] == {
        "stream_id": "s",
        "event": "error",
        "error": error.message,
        "code": code,
        "is_final": True,
    }


async def test_cancel_ends_the_stream_in_the_runtime_and_for_the_host() -> None:
    client = FakeClient(stay_silent)
    async with connected(client) as host:
        await host.ask("generate", PROMPT)
        assert (await host.ask("cancel", {"stream_id": "s"}))["result"] == {"success": True}
        (event,) = await host.end_of("s")
        assert (event["params"]["event"], event["params"]["code"]) == ("error", -32800)
        assert (await host.ask("cancel", {"stream_id": "s"}))["result"] == {"success": False}
    assert client.streams[0].cancelled.is_set()


async def test_a_cancelled_request_without_an_id_is_nobodys() -> None:
    client = FakeClient(stay_silent)
    async with connected(client) as host:
        host.notify("generate", PROMPT)
        host.notify("$/cancelRequest", {})
        assert (await host.ask("cancel", {"stream_id": "s"}))["result"] == {"success": True}


async def test_cancel_right_behind_generate_finds_the_stream() -> None:
    async with connected(FakeClient(stay_silent)) as host:
        host.call("generate", PROMPT, request_id="start")
        host.call("cancel", {"stream_id": "s"}, request_id="stop")
        assert (await host.answer("stop"))["result"] == {"success": True}


async def test_a_batch_starts_each_stream_or_says_why_not() -> None:
    good = {"model_id": "tiny", "prompt": "a"}
    requests = [
        {**good, "stream_id": "a"},
        {**good, "prompt": ""},
        {**good, "stream_id": "a"},
        {**good, "stream_id": "b"},
    ]
    async with connected(FakeClient()) as host:
        answer = await host.ask("batch_generate", {"requests": requests})
        assert host.seen == [answer], "no chunk comes before the answer"
        results = answer["result"]["results"]
        for name in ("a", "b"):
            await host.until(lambda message, name=name: _ended(host, name))  # type: ignore[misc]
    assert [item["success"] for item in results] == [True, False, False, True]
    assert results[3]["result"]["stream_id"] == "b"
    assert [item["data"]["field"] for item in results[1:3]] == ["requests[1].prompt", "stream_id"]
    assert sum(message.get("method") == "stream.event" for message in host.seen) == 2


def _ended(host: Host, stream_id: str) -> bool:
    return any(
        message.get("method") == "stream.event" and message["params"]["stream_id"] == stream_id for message in host.seen
    )


async def test_without_streaming_the_chunks_come_at_the_end() -> None:
    async with connected(FakeClient()) as host:
        await host.ask("generate", {**PROMPT, "streaming": False})
        chunk, _, event = await host.end_of("s")
    assert chunk["params"]["batch_size"] == len(WORDS)
    assert event["params"]["event"] == "completed"


async def test_long_texts_are_split_so_that_every_line_is_short() -> None:
    text = "\0ü" * 40_000

    async def play(stream: FakeStream) -> None:
        stream.push(0, text, tokens=(1,))
        for _ in range(2000):
            stream.push(0, "word ", tokens=(2,))
        stream.finish()

    async with connected(FakeClient(play)) as host:
        await host.ask("generate", PROMPT)
        told = texts(await host.end_of("s"))
    assert "".join(told) == text + "word " * 2000
    assert host.longest_line < 64 << 10


# --- editors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["partialResultToken", "progressToken"])
@pytest.mark.parametrize("token", ["mine", 7])
async def test_an_editor_gets_progress_by_its_token_and_the_whole_result(name: str, token: object) -> None:
    params = {"model_id": "tiny", "messages": [{"role": "user", "content": "Hi"}], name: token}
    async with connected(FakeClient(), headers=True) as host:
        result = (await host.ask("chat", params))["result"]
    *progress, _ = host.seen
    assert {message["method"] for message in progress} == {"$/progress"}
    assert all(message["params"]["token"] == token for message in progress)
    values = [{"method": "stream.chunk", "params": message["params"]["value"]} for message in progress]
    assert texts(values) == list(WORDS)
    assert result.keys() == {
        "stream_id",
        "started_at",
        "text",
        "token_ids",
        "finish_reason",
        "usage",
        "stats",
    }
    assert (result["text"], result["token_ids"]) == ("".join(WORDS), [1, 1, 1, 1])
    assert (result["finish_reason"], result["usage"]["prompt_tokens"]) == ("stop", 5)
    assert result["stats"]["tokens_generated"] == 4


async def test_cancelling_the_request_of_an_editor_ends_its_stream() -> None:
    client = FakeClient(stay_silent)
    async with connected(client, headers=True) as host:
        host.call("generate", {**PROMPT, "partialResultToken": 1}, request_id=3)
        await until(lambda: bool(client.streams))
        host.notify("$/cancelRequest", {"id": 3})
        answer = await host.answer(3)
        assert answer["error"]["code"] == -32800
        assert (await host.ask("cancel", {"stream_id": "s"}))["result"] == {"success": False}
    assert client.streams[0].cancelled.is_set()


async def test_a_failure_is_the_answer_to_an_editors_request() -> None:
    async with connected(FakeClient(failing(ReplicaLost("gone"))), headers=True) as host:
        answer = await host.ask("generate", {**PROMPT, "partialResultToken": 1})
    assert (answer["error"]["code"], answer["error"]["data"]["code"]) == (-32002, "replica_lost")


WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}


async def test_tools_and_earlier_calls_arrive_at_the_runtime() -> None:
    turns = [
        {"role": "assistant", "tool_calls": [CALL], "reasoning_content": "so"},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    more = {"tools": [WEATHER], "tool_choice": "required", "thinking_budget": 3, "chat_template_kwargs": {"a": 1}}
    client = FakeClient()
    async with connected(client) as host:
        await host.ask("chat", {"model_id": "tiny", "messages": turns, **more})
    request = client.streams[0].request
    assert request.tool_use == ToolUse((Tool("weather", '{"type":"object"}'),), "required")
    assert (request.thinking_budget, request.template_arguments) == (3, '{"a":1}')
    assistant, tool = request.messages or ()
    assert assistant.tool_calls == (ToolCall("weather", '{"city": "Köln"}', "call_1"),)
    assert (assistant.content, assistant.reasoning, tool.tool_call_id) == ("", "so", "call_1")


async def test_reasoning_and_calls_are_told_apart_from_text() -> None:
    chat = {"model_id": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream_id": "s"}
    async with connected(FakeClient(call_a_tool)) as host:
        await host.ask("chat", chat)
        notifications = await host.end_of("s")
        result = (await host.ask("chat", {**chat, "partialResultToken": "t"}))["result"]
    chunks = [each["params"] for each in notifications if each["method"] == "stream.chunk"]
    told = [token for chunk in chunks for token in chunk.get("tokens", [chunk])]
    assert "".join(token["token"] for token in told) == "Well."
    assert "".join(token.get("reasoning_content", "") for token in told) == "so it is"
    parts = [part for token in told for part in token.get("tool_calls", ())]
    assert (parts[0]["id"], parts[0]["function"]["name"]) == ("call_1", "weather")
    assert "".join(part["function"]["arguments"] for part in parts) == '{"city": "Köln"}'
    assert notifications[-1]["params"]["finish_reason"] == "tool_calls"
    assert (result["text"], result["reasoning_content"], result["tool_calls"]) == ("Well.", "so it is", [CALL])
