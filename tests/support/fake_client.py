"""A Client without a runtime: answers requests from a script, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any

from mlx_serving.actors.errors import Cancelled, ServingError
from mlx_serving.actors.messages import admission as asked
from mlx_serving.actors.messages import frontend as told
from mlx_serving.actors.messages.values import (
    AdapterInfo,
    CacheStats,
    FinishReason,
    ModelInfo,
    SequenceEnd,
    Timings,
    TokenLogprob,
    ToolCallPart,
    Usage,
    pack_ids,
    unpack_ids,
)

MODEL = ModelInfo("tiny", "/models/tiny", "llama", 135_000_000, "float16", 2048, 49152, 1024, 4)
ADAPTER = AdapterInfo("sql", MODEL.name, "mlx-lm", 8, 4, 1000, "abc", "/adapters/sql")
TIMINGS = Timings(0.001, 0.002, 0.003, 0.004, 0.01)
CACHE = CacheStats(True, entries=2, tokens=640, bytes=1 << 20, limit_bytes=1 << 30, lookups=4, hits=3)
WORDS = ("Hello", ", ", "wörld", " 🌍")

Play = Callable[["FakeStream"], Awaitable[None]]


def ending(reason: FinishReason = "stop", tokens: int = len(WORDS)) -> SequenceEnd:
    return SequenceEnd(reason, prompt_tokens=5, completion_tokens=tokens)


async def say_hello(stream: FakeStream) -> None:
    """The four WORDS for every choice, one step at a time."""
    request = stream.request
    for position, word in enumerate(WORDS):
        logprobs: tuple[TokenLogprob, ...] = ()
        if request.sampling.logprobs:
            ranks = range(request.sampling.top_logprobs)
            top = tuple((10 + rank, f"t{rank}", -1.0 - rank) for rank in ranks)
            logprobs = (TokenLogprob(position, word, -0.5, top),)
        end = ending() if position == len(WORDS) - 1 else None
        for index in range(request.n):
            stream.push(index, word, logprobs=logprobs, end=end)
        await asyncio.sleep(0)
    stream.finish()


async def call_a_tool(stream: FakeStream) -> None:
    """Reasoning, a word, and one call of `weather` for each choice."""
    for index in range(stream.request.n):
        stream.push(index, "", reasoning="so")
        stream.push(index, "Well.", reasoning=" it is")
        stream.push(index, "", tool_calls=(ToolCallPart(0, '{"ci', "call_1", "weather"),))
        stream.push(index, "", tool_calls=(ToolCallPart(0, 'ty": "Köln"}'),), end=ending("tool_calls"))
    stream.finish()


class Gate:
    """Closed until `open` is called, from any thread; made and waited for on the server's loop."""

    def __init__(self) -> None:
        self._opened = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def open(self) -> None:
        self._loop.call_soon_threadsafe(self._opened.set)

    async def wait(self) -> None:
        await self._opened.wait()


class FakeStream:
    """One request's answer, fed by a play."""

    def __init__(self, request: asked.GenerationRequested, play: Play) -> None:
        self.request = request
        self.cancelled = threading.Event()
        self.pushed = 0
        self.result = told.RequestFinished(0, Usage(5, len(WORDS) * request.n, 3), TIMINGS)
        self.refusal: ServingError | None = None
        self._error: ServingError | None = None
        self._deltas: list[told.Delta] = []
        self._finished = False
        self._news = asyncio.Event()
        self._written = asyncio.Event()
        self.gate = Gate()
        self._player = asyncio.ensure_future(play(self))

    def push(
        self,
        index: int,
        text: str,
        *,
        tokens: Sequence[int] = (1,),
        logprobs: tuple[TokenLogprob, ...] = (),
        end: SequenceEnd | None = None,
        reasoning: str = "",
        tool_calls: tuple[ToolCallPart, ...] = (),
    ) -> None:
        self.pushed += 1
        self._deltas.append(told.Delta(0, index, text, tuple(tokens), logprobs, end, reasoning, tool_calls))
        self._written.clear()
        self._news.set()

    def finish(self) -> None:
        self._finished = True
        self._news.set()

    def fail(self, error: ServingError) -> None:
        self._error = error
        self._news.set()

    async def taken(self) -> None:
        """Wait until the reader has written everything and asks for more."""
        await self._written.wait()

    def cancel(self) -> None:
        if not self._finished and self._error is None:
            self.cancelled.set()
            self._player.cancel()
            self.fail(Cancelled("the request was cancelled"))

    async def accepted(self) -> told.RequestAccepted:
        if self.refusal is not None:
            self.fail(self.refusal)
            raise self.refusal
        return told.RequestAccepted(0, self.request.model or MODEL.name, 5)

    async def begun(self) -> None:
        while not self._deltas and not self._finished:
            if self._error is not None:
                raise self._error
            self._news.clear()
            await self._news.wait()

    async def __aiter__(self) -> AsyncIterator[list[told.Delta]]:
        while True:
            if self._deltas:
                deltas, self._deltas = self._deltas, []
                yield deltas
                self._written.set()
            elif self._error is not None:
                raise self._error
            elif self._finished:
                return
            else:
                self._news.clear()
                await self._news.wait()

    async def __aenter__(self) -> FakeStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
        self._player.cancel()


class FakeClient:
    """Stands where a Client does. `connect` takes the FakeClient itself as the door.

    `play` feeds every stream; `refusal` refuses every request; `answers` overrides those to questions.
    """

    def __init__(self, play: Play = say_hello, refusal: ServingError | None = None) -> None:
        self.play = play
        self.refusal = refusal
        self.answers: dict[type, Any] = {}
        self.asked: list[Any] = []
        self.streams: list[FakeStream] = []
        self.closed = threading.Event()

    @staticmethod
    async def connect(door: FakeClient, name: str, settings: Any) -> FakeClient:
        return door

    def submit(self, request: asked.GenerationRequested) -> FakeStream:
        stream = FakeStream(request, self.play)
        stream.refusal = self.refusal
        self.streams.append(stream)
        return stream

    async def ask(self, message: Any, *, timeout: float | None = None) -> Any:
        self.asked.append(message)
        answer = self.answers.get(type(message)) or _answer(message)
        if isinstance(answer, ServingError):
            raise answer
        return answer

    async def close(self) -> None:
        self.closed.set()


def served(state: str = "ready") -> told.ServedModel:
    return told.ServedModel(MODEL, state, True, 1, 1_700_000_000.5)


def status(*, ready: bool = True, reason: str = "", draining: bool = False) -> told.StatusReported:
    actor = asked.ActorState("admission", "ready", "thread", 1, 0, 2.0)
    queue = asked.QueueObserved(0, 0, 0, 0.0, 0)
    return told.StatusReported("0.1.0", ready, reason, draining, 2.0, (actor,), (served(),), queue, 0, (), 1000, 0)


def _answer(message: Any) -> Any:
    match message:
        case asked.StatusRequested():
            return status()
        case asked.ModelsRequested():
            return told.ModelsListed((served(),), ("other",))
        case asked.TokenizeRequested():
            text = message.text
            if text is None:
                text = "".join(turn.content for turn in message.messages or ())
            return told.Tokenized(MODEL.name, pack_ids(map(ord, text)), tuple(text), MODEL.context_length)
        case asked.DetokenizeRequested():
            text = "".join(chr(number % 0xD800) for number in unpack_ids(message.token_ids))
            return told.Detokenized(MODEL.name, text)
        case asked.ModelLoadRequested():
            return told.ModelLoaded(served())
        case asked.ModelUnloadRequested() | asked.ModelPinRequested() | asked.AdapterRemoveRequested():
            return told.Done()
        case asked.AdaptersRequested() | asked.AdapterAddRequested():
            return told.AdaptersListed((ADAPTER,))
        case asked.CacheStatsRequested() | asked.CacheClearRequested():
            return told.CacheReported((told.ReplicaCache("replica-1", MODEL.name, CACHE),))
        case asked.CacheWarmRequested():
            return told.CacheWarmed((told.WarmedPrompt("support", MODEL.name, "replica-1", 900, 0, 0.5),))
        case asked.MetricsRequested():
            return told.MetricsReported("# TYPE up gauge\nup 1\n")
    raise AssertionError(f"no answer to {message}")
