"""Streams to hosts that stop reading, over real pipes."""

from __future__ import annotations

import asyncio

import pytest
from support.fake_client import FakeClient, FakeStream
from support.stdio_host import connected, settings, texts, until

from mlx_serving.actors.messages import admission as asked
from mlx_serving.frontends.stdio.wire import STREAM_BACKLOG

pytestmark = pytest.mark.anyio

PROMPT = {"model_id": "tiny", "prompt": "Hello", "stream_id": "s"}
PIPE_BYTES = 64 << 10


class Pushed:
    """A play that says another kilobyte as soon as the last one was taken."""

    def __init__(self, words: int) -> None:
        self.words = words
        self.count = 0

    async def __call__(self, stream: FakeStream) -> None:
        for _ in range(self.words):
            stream.push(0, "x" * 1000)
            self.count += 1
            await until(lambda: not stream._deltas)
        stream.finish()


async def _settled(pushed: Pushed) -> int:
    """The count once it has not moved for a thousand turns of the loop."""
    before = -1
    while before != pushed.count:
        before = pushed.count
        for _ in range(1000):
            await asyncio.sleep(0)
    return before


async def test_a_host_that_stops_reading_pauses_its_streams_and_loses_nothing() -> None:
    pushed = Pushed(400)
    client = FakeClient(pushed)
    async with connected(client) as host:
        host.pause()
        host.call("generate", PROMPT)
        count = await _settled(pushed)
        assert 50 < count <= (PIPE_BYTES + STREAM_BACKLOG) // 1000 + 2
        host.call("tokenize", {"model_id": "tiny", "text": "a"}, request_id="meanwhile")
        await until(lambda: any(isinstance(each, asked.TokenizeRequested) for each in client.asked))
        assert pushed.count == count
        host.resume()
        notifications = await host.end_of("s")
        assert any(message.get("id") == "meanwhile" for message in host.seen)
    assert "".join(texts(notifications)) == "x" * 400_000
    assert notifications[-1]["params"]["event"] == "completed"


async def test_cancel_reaches_the_runtime_though_the_host_does_not_read() -> None:
    pushed = Pushed(400)
    client = FakeClient(pushed)
    async with connected(client) as host:
        host.pause()
        host.call("generate", PROMPT)
        await _settled(pushed)
        host.call("cancel", {"stream_id": "s"}, request_id="stop")
        await until(client.streams[0].cancelled.is_set)
        host.resume()
        assert (await host.end_of("s"))[-1]["params"]["code"] == -32800


async def test_a_host_that_never_reads_is_let_go_in_bounded_time_and_memory() -> None:
    client = FakeClient(Pushed(10_000))
    async with connected(client, reading=False, configuration=settings(drain_seconds=0.2)) as host:
        host.call("generate", PROMPT)
        for number in range(60):
            host.call("tokenize", {"model_id": "tiny", "text": "a" * 3000}, request_id=number)
            await asyncio.sleep(0)
        host.hang_up()
        await host.over()
    assert client.streams[0].cancelled.is_set()


async def test_a_broken_stdout_ends_the_server() -> None:
    client = FakeClient(Pushed(10_000))
    async with connected(client) as host:
        await host.ask("generate", PROMPT)
        host.break_off()
        await host.over()
    assert client.streams[0].cancelled.is_set()
    assert client.asked[-1] == asked.ShutdownRequested()
