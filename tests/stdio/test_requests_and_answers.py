"""JSON-RPC over real pipes: what is answered, and what a bad message does to its neighbours (nothing)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.fake_client import MODEL, FakeClient, FakeStream, served
from support.stdio_host import Host, connected, settings

from mlx_serving.actors.errors import (
    InvalidParameter,
    ModelNotLoaded,
    Overloaded,
    ServingError,
    TokenizerFailed,
    UntrustedPath,
)
from mlx_serving.actors.messages import admission as asked
from mlx_serving.actors.messages import frontend as told
from mlx_serving.frontends.stdio.calls import MOST_PENDING

pytestmark = pytest.mark.anyio

PROMPT = {"model_id": "tiny", "prompt": "Hello"}
CHAT = {"model_id": "tiny", "messages": [{"role": "user", "content": "hi"}]}


async def stay_silent(stream: FakeStream) -> None:
    """Never say anything."""
    await asyncio.Event().wait()


class SlowClient(FakeClient):
    """Loads take until `loaded` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded = asyncio.Event()

    async def ask(self, message: Any, *, timeout: float | None = None) -> Any:
        if isinstance(message, asked.ModelLoadRequested):
            await self.loaded.wait()
        return await super().ask(message, timeout=timeout)


async def test_the_readiness_probe_is_answered_with_what_works() -> None:
    async with connected(FakeClient()) as host:
        answer = await host.ask("runtime/info", request_id="readiness-probe")
    info = answer["result"]
    assert info["protocol"] == "json-rpc-2.0"
    assert {"version", "mlx_version", "mlx_lm_version", "mlx_supported"} <= info.keys()
    assert info["memory"]["rss"] > 0 < info["memory"]["vms"]
    assert {"batch_tokenize", "batch_generate", "chat", "cancel"} <= set(info["capabilities"])
    assert not {"check_draft", "batch_check_draft", "load_vision_model"} & set(info["capabilities"])


@pytest.mark.parametrize("headers", [False, True])
async def test_each_framing_is_answered_in_kind(headers: bool) -> None:
    async with connected(FakeClient(), headers=headers) as host:
        answer = await host.ask("detokenize", {"model_id": "tiny", "tokens": [72, 105]})
    assert answer == {"jsonrpc": "2.0", "id": 1, "result": {"text": "Hi"}}


@pytest.mark.parametrize(
    ("line", "code", "request_id"),
    [
        (b"{", -32700, None),
        (b"\xff\xfe", -32700, None),
        (b"hello", -32700, None),
        (b"[]", -32600, None),
        (b'[{"jsonrpc":"2.0","id":1,"method":"health"}]', -32600, None),
        (b'"text"', -32600, None),
        (b"{}", -32600, None),
        (b'{"id":4,"method":"health"}', -32600, 4),
        (b'{"jsonrpc":"2.0","id":true,"method":"health"}', -32600, None),
        (b'{"jsonrpc":"2.0","id":null,"method":"health"}', -32600, None),
        (b'{"jsonrpc":"2.0","id":"%b","method":"health"}' % (b"x" * 300), -32600, None),
        (b'{"jsonrpc":"2.0","id":5}', -32600, 5),
        (b'{"jsonrpc":"2.0","id":5,"method":7}', -32600, 5),
        (b'{"jsonrpc":"2.0","id":5,"method":"nonsense"}', -32601, 5),
        (b'{"jsonrpc":"2.0","id":5,"method":"check_draft","params":{}}', -32601, 5),
        (b'{"jsonrpc":"2.0","id":5,"method":"generate_with_image"}', -32601, 5),
        (b'{"jsonrpc":"2.0","id":5,"method":"tokenize","params":[1]}', -32602, 5),
        (b'{"jsonrpc":"2.0","id":5,"method":"health","params":0}', -32602, 5),
        (b'{"jsonrpc":"2.0","id":6.5,"method":"tokenize","params":"x"}', -32602, 6.5),
        (
            b'{"jsonrpc":"2.0","id":"big","method":"tokenize","params":{"text":"%b"}}' % (b"x" * 5000),
            -32600,
            "big",
        ),
    ],
)
async def test_a_bad_message_gets_its_error_and_the_next_one_works(line: bytes, code: int, request_id: object) -> None:
    async with connected(FakeClient(), configuration=settings(max_line_bytes=4000)) as host:
        host.write(line + b"\n")
        host.call("health", request_id="next")
        error = await host.receive()
        following = await host.receive()
    assert (error["error"]["code"], error["id"]) == (code, request_id)
    assert isinstance(error["error"]["data"]["code"], str)
    assert following["id"] == "next"
    assert following["result"]["status"] == "ok"


async def test_bad_messages_disturb_no_running_stream() -> None:
    go_on = asyncio.Event()

    async def speak(stream: FakeStream) -> None:
        stream.push(0, "one")
        await go_on.wait()
        stream.push(0, "two")
        stream.finish()

    async with connected(FakeClient(speak)) as host:
        await host.ask("generate", {**PROMPT, "stream_id": "s"})
        host.write(b"{nonsense\n[1]\n" + b"x" * 100 + b"\n")
        for code in (-32700, -32600, -32700):
            assert (await host.until(lambda message: "error" in message))["error"]["code"] == code
        go_on.set()
        notifications = await host.end_of("s")
    assert [each["params"].get("token") for each in notifications[:2]] == ["one", "two"]


@pytest.mark.parametrize(
    ("method", "params", "field"),
    [
        ("generate", {**PROMPT, "temprature": 1}, "temprature"),
        ("generate", {"model_id": "tiny"}, "prompt"),
        ("generate", {**PROMPT, "prompt": ""}, "prompt"),
        ("generate", {**PROMPT, "prompt": ["a"]}, "prompt"),
        ("generate", {**PROMPT, "max_tokens": "5"}, "max_tokens"),
        ("generate", {**PROMPT, "max_tokens": 5.0}, "max_tokens"),
        ("generate", {**PROMPT, "max_tokens": True}, "max_tokens"),
        ("generate", {**PROMPT, "temperature": -1}, "temperature"),
        ("generate", {**PROMPT, "top_p": 0}, "top_p"),
        ("generate", {**PROMPT, "streaming": "yes"}, "streaming"),
        ("generate", {**PROMPT, "stop_sequences": ["a", ""]}, "stop_sequences[1]"),
        ("generate", {**PROMPT, "stop_token_ids": [1, -1]}, "stop_token_ids[1]"),
        ("generate", {**PROMPT, "stream_id": "a\nb"}, "stream_id"),
        ("generate", {**PROMPT, "guidance": {"mode": "xml", "schema": {}}}, "guidance.mode"),
        ("generate", {**PROMPT, "guidance": {"mode": "json_schema"}}, "guidance.schema"),
        ("generate", {**PROMPT, "guidance": {"mode": "choice", "schema": ["a", 5]}}, "guidance.schema[1]"),
        ("generate", {**PROMPT, "draft_model": "small"}, "draft_model"),
        ("generate", {**PROMPT, "priority": "urgent"}, "priority"),
        ("chat", {"model_id": "tiny", "messages": []}, "messages"),
        ("chat", {"model_id": "tiny", "messages": [{"role": "user"}]}, "messages[0].content"),
        ("chat", {"model_id": "tiny", "messages": [{"role": "cat", "content": ""}]}, "messages[0].role"),
        ("chat", {**CHAT, "tools": [{"type": "function"}]}, "tools[0].function"),
        ("chat", {**CHAT, "tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        ("chat", {**CHAT, "tool_choice": "any"}, "tool_choice"),
        ("chat", {**CHAT, "chat_template_kwargs": 1}, "chat_template_kwargs"),
        ("generate", {**PROMPT, "tools": []}, "tools"),
        ("load_model", {"model_id": "tiny", "quantization": "int4"}, "quantization"),
        ("load_model", {"model_id": "tiny", "draft": True}, "draft"),
        ("load_model", {"model_id": "tiny", "load_kwargs": {"a": 1}}, "load_kwargs"),
        ("tokenize", {"model_id": "tiny", "text": 5}, "text"),
        ("detokenize", {"model_id": "tiny", "tokens": [2**32]}, "tokens[0]"),
        ("batch_tokenize", {"requests": []}, "requests"),
        ("runtime/info", {"verbose": True}, "verbose"),
        ("cancel", {}, "stream_id"),
    ],
)
async def test_wrong_parameters_are_refused_by_name(method: str, params: dict[str, Any], field: str) -> None:
    async with connected(FakeClient()) as host:
        error = (await host.ask(method, params))["error"]
    assert error["code"] == -32602
    assert error["data"]["field"] == field
    assert field in error["message"]


async def test_everything_wrong_is_reported_at_once() -> None:
    async with connected(FakeClient()) as host:
        error = (await host.ask("generate", {"prompt": 1, "top_p": 2, "temprature": 1}))["error"]
    for part in ("model_id is required", "prompt must be", "top_p must be", "did you mean temperature?"):
        assert part in error["message"]


async def test_a_prediction_reaches_the_runtime() -> None:
    client = FakeClient()
    async with connected(client) as host:
        await host.ask("generate", {**PROMPT, "prediction": "abc", "speculation": False})
    request = client.streams[0].request
    assert (request.prediction, request.speculation) == ("abc", False)


async def test_parameters_that_ask_for_nothing_are_let_in() -> None:
    neutral: dict[str, Any] = {
        "revision": "main",
        "quantization": None,
        "context_length": None,
        "draft": False,
        "tokenizer_config": {},
        "load_kwargs": {},
    }
    async with connected(FakeClient()) as host:
        assert "result" in await host.ask("load_model", {"model_id": "tiny", **neutral})
        accepted = await host.ask("generate", {**PROMPT, "guidance": None, "draft_model": None, "seed": None})
        assert "result" in accepted


@pytest.mark.parametrize(
    ("error", "code", "data"),
    [
        (
            ModelNotLoaded("load it first", model="tiny"),
            -32005,
            {"code": "model_not_loaded", "model_id": "tiny"},
        ),
        (Overloaded("full", retry_after=2.5), -32006, {"code": "overloaded", "retry_after": 2.5}),
        (TokenizerFailed("no"), -32003, {"code": "tokenizer_failed"}),
        (InvalidParameter("bad", field="text"), -32602, {"code": "invalid_parameter", "field": "text"}),
    ],
)
async def test_errors_of_the_runtime_keep_their_code_and_data(
    error: ServingError, code: int, data: dict[str, Any]
) -> None:
    client = FakeClient()
    client.answers[asked.TokenizeRequested] = error
    async with connected(client) as host:
        answer = await host.ask("tokenize", {"model_id": "tiny", "text": "a"})
    assert answer["error"] == {"code": code, "message": error.message, "data": data}


async def test_a_break_within_the_runtime_is_an_internal_error(caplog: pytest.LogCaptureFixture) -> None:
    client = FakeClient()
    client.answers[asked.TokenizeRequested] = object()
    async with connected(client) as host:
        answer = await host.ask("tokenize", {"model_id": "tiny", "text": "a"})
    assert answer["error"]["code"] == -32603
    assert "tokenize failed" in caplog.text


async def test_a_slow_load_holds_up_nothing() -> None:
    client = SlowClient()
    async with connected(client) as host:
        host.call("load_model", {"model_id": "tiny"}, request_id="load")
        answer = await host.ask("tokenize", {"model_id": "tiny", "text": "ab"})
        assert answer["result"] == {"tokens": [97, 98], "token_strings": ["a", "b"]}
        client.loaded.set()
        load = await host.answer("load")
    assert load["result"] == {
        "model_id": "tiny",
        "state": "ready",
        "context_length": MODEL.context_length,
        "parameter_count": MODEL.parameter_count,
        "dtype": MODEL.dtype,
        "is_vision_model": False,
        "cached_path": MODEL.path,
    }


async def test_a_hundred_requests_may_be_pending_and_the_next_is_overload() -> None:
    client = SlowClient()
    async with connected(client) as host:
        for number in range(MOST_PENDING):
            host.call("load_model", {"model_id": "tiny"}, request_id=number)
        refused = await host.ask("health", request_id="one more")
        assert refused["error"]["code"] == -32006
        assert refused["error"]["data"]["retry_after"] > 0
        cancelled = await host.ask("cancel", {"stream_id": "none"}, request_id="urgent")
        assert cancelled["result"] == {"success": False}
        client.loaded.set()
        answers = {(await host.receive())["id"] for _ in range(MOST_PENDING)}
        assert answers == set(range(MOST_PENDING))
        assert "result" in await host.ask("health")


async def test_notifications_are_never_answered() -> None:
    async with connected(FakeClient()) as host:
        host.notify("tokenize", {"model_id": "tiny", "text": "a"})
        host.notify("nonsense", {})
        host.notify("generate", {"model_id": 5})
        host.notify("$/setTrace", {"value": "off"})
        host.send({"jsonrpc": "2.0", "id": 9, "result": "an answer to nothing"})
        assert (await host.ask("health", request_id="only"))["id"] == "only"
    assert [message["id"] for message in host.seen] == ["only"]


async def test_a_pending_request_is_cancelled_by_its_id_and_type() -> None:
    async with connected(SlowClient()) as host:
        host.call("load_model", {"model_id": "tiny"}, request_id="1")
        host.call("load_model", {"model_id": "tiny"}, request_id=1)
        host.notify("$/cancelRequest", {"id": 1})
        host.notify("$/cancelRequest", {"id": "unknown"})
        error = await host.receive()
        assert (error["id"], error["error"]["code"]) == (1, -32800)
        host.notify("$/cancelRequest", {"id": "1"})
        assert (await host.answer("1"))["error"]["code"] == -32800


async def test_a_model_from_a_folder_is_known_by_the_hosts_own_name() -> None:
    client = FakeClient()
    async with connected(client) as host:
        await host.ask("load_model", {"model_id": "mine", "local_path": "/models/tiny"})
        await host.ask("generate", {"model_id": "mine", "prompt": "a", "stream_id": "s"})
        state = (await host.ask("runtime/state"))["result"]
        await host.ask("unload_model", {"model_id": "mine"})
    assert asked.ModelLoadRequested("/models/tiny") in client.asked
    assert client.streams[0].request.model == "tiny"
    assert state == {
        "loaded_models": [{"model_id": "mine", "state": "ready", "type": "text"}],
        "active_streams": 0,
        "restart_count": 0,
    }
    assert asked.ModelUnloadRequested("tiny") in client.asked


@pytest.mark.parametrize(("folder", "field"), [({}, "model_id"), ({"local_path": "/etc"}, "local_path")])
async def test_a_refused_load_names_the_hosts_parameter(folder: dict[str, str], field: str) -> None:
    client = FakeClient()
    client.answers[asked.ModelLoadRequested] = UntrustedPath("no", field="model")
    async with connected(client) as host:
        error = (await host.ask("load_model", {"model_id": "mine", **folder}))["error"]
    assert (error["code"], error["data"]["field"]) == (-32602, field)


async def test_the_model_of_an_error_has_the_hosts_own_name() -> None:
    client = FakeClient()
    client.answers[asked.TokenizeRequested] = ModelNotLoaded("gone")
    async with connected(client) as host:
        error = (await host.ask("tokenize", {"model_id": "mine", "text": "a"}))["error"]
    assert error["data"]["model_id"] == "mine"


async def test_counters_are_summed_over_their_labels() -> None:
    client = FakeClient()
    client.answers[asked.MetricsRequested] = told.MetricsReported(
        '# TYPE a_total counter\na_total{x="1"} 2.0\na_total{x="2"} 3.0\nb_total 1.5\nup 1.0\n'
    )
    async with connected(client) as host:
        answer = await host.ask("runtime/telemetry")
    assert answer["result"] == {"enabled": True, "a_total": 5.0, "b_total": 1.5}


async def test_models_are_listed_with_what_they_are() -> None:
    async with connected(FakeClient()) as host:
        listed = (await host.ask("list_models"))["result"]
    (model,) = listed["models"]
    assert (model["model_id"], model["state"], model["is_default"]) == ("tiny", "ready", served().is_default)
    assert listed["stored"] == ["other"]


async def test_a_batch_is_answered_item_by_item() -> None:
    one, bad = {"model_id": "tiny", "text": "a"}, {"model_id": "tiny", "text": 5}
    async with connected(FakeClient()) as host:
        results = (await host.ask("batch_tokenize", {"requests": [one, bad, 7, one]}))["result"]["results"]
    assert [item["success"] for item in results] == [True, False, False, True]
    assert results[0]["result"] == {"tokens": [97], "token_strings": ["a"]}
    assert results[0]["error"] is results[1]["result"] is None
    assert results[1]["data"]["field"] == "requests[1].text"
    assert isinstance(results[2]["error"], str)


async def test_an_answer_that_does_not_fit_into_a_line_is_an_error() -> None:
    async with connected(FakeClient()) as host:
        too_long = await host.ask("tokenize", {"model_id": "tiny", "text": "a" * 20_000})
        fits = await host.ask("tokenize", {"model_id": "tiny", "text": "a" * 2_000})
    assert too_long["error"]["data"]["code"] == "request_too_large"
    assert len(fits["result"]["tokens"]) == 2_000
    async with connected(FakeClient(), headers=True) as host:
        answer = await host.ask("tokenize", {"model_id": "tiny", "text": "a" * 20_000})
    assert len(answer["result"]["tokens"]) == 20_000


async def test_items_of_a_batch_that_do_not_fit_into_the_line_fail_alone() -> None:
    sizes = (3_000, 3_000, 10, 3_000, 2_000)
    requests = [{"model_id": "tiny", "text": "a" * size} for size in sizes]
    async with connected(FakeClient()) as host:
        results = (await host.ask("batch_tokenize", {"requests": requests}))["result"]["results"]
    assert host.longest_line < 64 << 10
    assert [item["success"] for item in results] == [True, True, True, False, True]
    assert results[3]["data"]["code"] == "request_too_large"


async def test_long_errors_stay_within_a_line() -> None:
    async with connected(FakeClient()) as host:
        await host.write_much(b'{"jsonrpc":"2.0","id":1,"method":"%b"}\n' % (b"m" * 70_000))
        await host.write_much(b'{"jsonrpc":"2.0","id":2,"method":"chat","params":{%b}}\n' % _unknown())
        assert "error" in await host.receive()
        assert "error" in await host.receive()
    assert host.longest_line < 64 << 10


async def test_closing_stdin_lets_pending_requests_and_streams_finish() -> None:
    go_on = asyncio.Event()

    async def speak(stream: FakeStream) -> None:
        await go_on.wait()
        stream.push(0, "late")
        stream.finish()

    client = FakeClient(speak)
    async with connected(client) as host:
        await host.ask("generate", {**PROMPT, "stream_id": "s"})
        host.write(b'{"jsonrpc":"2.0","id":2,"method":"health"}')  # without a line end
        host.hang_up()
        assert "result" in await host.answer(2)
        go_on.set()
        assert (await host.end_of("s"))[-1]["params"]["event"] == "completed"
        await host.over()
    assert client.asked[-1] == asked.ShutdownRequested()
    assert client.closed.is_set()


async def test_closing_stdin_waits_for_streams_only_so_long() -> None:
    client = FakeClient(stay_silent)
    async with connected(client, configuration=settings(drain_seconds=0.2)) as host:
        await host.ask("generate", {**PROMPT, "stream_id": "s"})
        host.hang_up()
        assert (await host.end_of("s"))[-1]["params"]["code"] == -32800
        await host.over()


async def test_shutdown_cancels_what_runs_and_is_answered_last() -> None:
    client = SlowClient()
    client.play = stay_silent
    async with connected(client) as host:
        await host.ask("generate", {**PROMPT, "stream_id": "s"})
        host.call("load_model", {"model_id": "tiny"}, request_id="load")
        host.call("shutdown", request_id="end")
        last = await host.answer("end")
        await host.over()
    assert last["result"] == {"success": True}
    assert _errors(host) == {"load": -32800}
    ends = [each["params"] for each in host.seen if each.get("method") == "stream.event"]
    assert [(end["event"], end["code"]) for end in ends] == [("error", -32800)]
    assert client.asked[-1] == asked.ShutdownRequested()


async def test_when_the_runtime_ends_the_host_is_told_and_let_go() -> None:
    client = FakeClient(stay_silent)
    async with connected(client) as host:
        await host.ask("generate", {**PROMPT, "stream_id": "s"})
        await asyncio.to_thread(host.server.stop)
        assert (await host.end_of("s"))[-1]["params"]["event"] == "error"
        await host.over()
    assert asked.ShutdownRequested() not in client.asked


def _unknown() -> bytes:
    """Five hundred parameters that nobody knows, one with a long name."""
    return b",".join(b'"%b%d":1' % (b"p" * (70_000 if not n else 9), n) for n in range(500))


def _errors(host: Host) -> dict[Any, int]:
    return {each["id"]: each["error"]["code"] for each in host.seen if "error" in each and "id" in each}
