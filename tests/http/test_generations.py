"""Generations over real sockets: whole and streamed answers, failures, readers that leave or stop."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from support.fake_client import WORDS, FakeClient, FakeStream, ending
from support.wait import until

from mlx_serving.actors.errors import DeadlineExceeded, ModelNotFound, Overloaded, ReplicaLost, ServingError

Serve = Callable[..., str]
Browse = Callable[[str], httpx2.Client]

CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "hi"}]}
STREAM = {**HI, "stream": True}
TEXT = "".join(WORDS)
PIECE = "x" * 65_536
PIECES = 200


async def wait_for_ever(stream: FakeStream) -> None:
    await stream.gate.wait()


async def hello_behind_the_gate(stream: FakeStream) -> None:
    stream.push(0, "Hello")
    await stream.gate.wait()
    stream.push(0, "!", end=ending(tokens=2))
    stream.finish()


async def lose_the_replica(stream: FakeStream) -> None:
    stream.push(0, "Hel")
    stream.fail(ReplicaLost("the replica died", retry_after=2.5))


async def say_much(stream: FakeStream) -> None:
    """PIECES pieces, each when the one before was taken, as credits would have it."""
    for number in range(PIECES):
        stream.push(0, PIECE, end=ending() if number == PIECES - 1 else None)
        await stream.taken()
    stream.finish()


def events(text: str) -> list[Any]:
    lines = [line[6:] for line in text.split("\n\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def content(text: str) -> str:
    chunks = [event for event in events(text) if event != "[DONE]"]
    return "".join(c["delta"].get("content", "") for chunk in chunks for c in chunk["choices"])


def send_raw(url: str, body: dict[str, Any], receive_buffer: int | None = None) -> socket.socket:
    """A connection on which a chat was asked for and nothing was read."""
    address = urlsplit(url)
    connection = socket.socket()
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.connect((address.hostname, address.port))
    data = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


def test_a_whole_answer_has_every_field(url: str, browse: Browse) -> None:
    body = browse(url).post(CHAT, json={**HI, "n": 2, "model": "tiny"}).json()
    assert body["id"].startswith("chatcmpl-")
    assert (body["object"], body["model"]) == ("chat.completion", "tiny")
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    for choice in body["choices"]:
        assert choice["message"] == {"role": "assistant", "content": TEXT, "refusal": None}
        assert (choice["finish_reason"], choice["logprobs"]) == ("stop", None)
    assert body["usage"]["completion_tokens"] == 8
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 3
    assert body["timings"]["first_token_seconds"] == 0.003


def test_a_streamed_answer_ends_with_usage_and_done(url: str, browse: Browse) -> None:
    body = {**STREAM, "stream_options": {"include_usage": True}}
    response = browse(url).post(CHAT, json=body)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *chunks, usage, done = events(response.text)
    assert content(response.text) == TEXT
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert usage["usage"]["total_tokens"] == 9
    assert done == "[DONE]"
    assert len({chunk["id"] for chunk in chunks}) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts_are_numbered_together(url: str, browse: Browse, stream: bool) -> None:
    body = {"prompt": ["a", "b"], "n": 2, "echo": True, "stream": stream}
    response = browse(url).post("/v1/completions", json=body)
    answers = [""] * 4
    for event in events(response.text)[:-1] if stream else [response.json()]:
        for choice in event["choices"]:
            answers[choice["index"]] += choice["text"]
    assert answers == ["a" + TEXT, "a" + TEXT, "b" + TEXT, "b" + TEXT]
    if not stream:
        assert response.json()["usage"]["prompt_tokens"] == 10


def test_logprobs_of_a_whole_completion(url: str, browse: Browse) -> None:
    body = browse(url).post("/v1/completions", json={"prompt": "p", "logprobs": 1}).json()
    logprobs = body["choices"][0]["logprobs"]
    assert logprobs["tokens"] == list(WORDS)
    assert logprobs["text_offset"] == [0, 5, 7, 12]
    assert logprobs["top_logprobs"][0] == {"t0": -1.0, "Hello": -0.5}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (Overloaded("too much", retry_after=2.2), 429, "3"),
        (ModelNotFound("no such model", model="x"), 404, None),
        (DeadlineExceeded("too late"), 504, "1"),
    ],
)
def test_a_refusal_has_its_status_even_for_a_stream(
    serve: Serve, browse: Browse, stream: bool, error: ServingError, status: int, retry_after: str | None
) -> None:
    response = browse(serve(FakeClient(refusal=error))).post(CHAT, json={**HI, "stream": stream})
    assert response.status_code == status
    assert response.headers.get("retry-after") == retry_after
    assert response.json()["error"]["code"] == error.code
    assert response.json()["error"]["message"] == error.message


def test_a_failure_of_a_whole_answer_has_its_status(serve: Serve, browse: Browse) -> None:
    response = browse(serve(FakeClient(lose_the_replica))).post(CHAT, json=HI)
    assert (response.status_code, response.headers["retry-after"]) == (503, "3")
    assert response.json()["error"]["code"] == "replica_lost"


def test_a_failure_in_mid_stream_is_the_last_event(serve: Serve, browse: Browse) -> None:
    response = browse(serve(FakeClient(lose_the_replica))).post(CHAT, json=STREAM)
    assert response.status_code == 200
    assert events(response.text)[-1]["error"]["code"] == "replica_lost"
    assert "[DONE]" not in response.text
    assert '"Hel"' in response.text


def test_one_prompt_that_fails_ends_the_others(serve: Serve, browse: Browse) -> None:
    async def second_fails(stream: FakeStream) -> None:
        if stream.request.prompt == "b":
            stream.fail(ReplicaLost("gone"))
        await stream.gate.wait()

    client = FakeClient(second_fails)
    response = browse(serve(client)).post("/v1/completions", json={"prompt": ["a", "b"]})
    assert response.status_code == 503
    assert client.streams[0].cancelled.wait(60)


@pytest.mark.parametrize("stream", [False, True])
def test_a_caller_that_disconnects_cancels_its_request(serve: Serve, stream: bool) -> None:
    client = FakeClient(wait_for_ever)
    connection = send_raw(serve(client), {**HI, "stream": stream})
    until(lambda: client.streams, what="the request")
    connection.close()
    assert client.streams[0].cancelled.wait(60)


def test_silence_is_broken_by_comments(serve: Serve, browse: Browse) -> None:
    client = FakeClient(hello_behind_the_gate)
    lines: list[str] = []
    with browse(serve(client, heartbeat_seconds=0.05)).stream("POST", CHAT, json=STREAM) as response:
        for line in response.iter_lines():
            lines.append(line)
            if lines.count(": keep-alive") == 2 and line == ": keep-alive":
                client.streams[0].gate.open()
    assert content("\n\n".join(lines)) == "Hello!"
    assert lines[-2] == "data: [DONE]"


def test_a_reader_that_stops_holds_up_nobody_and_loses_nothing(serve: Serve, browse: Browse) -> None:
    client = FakeClient(say_much)
    url = serve(client)
    slow = send_raw(url, STREAM, receive_buffer=65_536)
    until(lambda: client.streams, what="the request")
    first = client.streams[0]
    neighbour = browse(url)
    seen = -1

    def has_stopped() -> bool:
        nonlocal seen
        before, seen = seen, first.pushed
        assert neighbour.post("/tokenize", json={"text": "ab"}).json()["count"] == 2
        return before == seen and seen > 0

    until(has_stopped, what="the pause")
    assert first.pushed < PIECES
    with slow:
        received = b"".join(iter(lambda: slow.recv(1 << 20), b""))
    assert received.count(b"x") >= PIECES * len(PIECE)
    assert b"data: [DONE]" in received
    assert not first.cancelled.is_set()
