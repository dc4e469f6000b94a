"""The client for code that is not asynchronous: its loop has a thread, and Ctrl-C stays with the caller.

While a command waits for its user, the loop goes on telling admission that the frontend is there.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from mlx_serving.actors.messages.admission import GenerationRequested
from mlx_serving.actors.messages.frontend import Delta, RequestAccepted, RequestFinished
from mlx_serving.actors.transport import Attachment
from mlx_serving.config.schema import Settings
from mlx_serving.frontends.client import Client, Stream

T = TypeVar("T")

END_SECONDS = 2.0
"""How long cancelled work may take to clean up when a session ends."""


class Session:
    """A connection to an admission's door. Use it in a `with` block and from one thread."""

    def __init__(self, door: str | Attachment, settings: Settings) -> None:
        self._door, self._settings = door, settings
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cli-session", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._client = self._wait(Client.connect(self._door, "cli", self._settings))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._wait(self._client.close())
        finally:
            self._end()

    def ask(self, question: Any, timeout: float | None = None) -> Any:
        """The answer message; raises a ServingError."""
        return self._wait(self._client.ask(question, timeout=timeout))

    def run(self, work: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
        """What `work` returns, run on the session's loop with its client."""
        return self._wait(work(self._client))

    def answer(self, request: GenerationRequested) -> Answer:
        """Submit the request; leaving the answer's `with` block early cancels it."""
        return Answer(self._wait(_call(self._client.submit, request)), self._wait)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        """The outcome of a coroutine; it is cancelled when the wait is broken off (Ctrl-C)."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _end(self) -> None:
        asyncio.run_coroutine_threadsafe(_settle(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Answer:
    """One request's stream. Iterate for the deltas that arrived since the last look; then read `result`."""

    def __init__(self, stream: Stream, wait: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._stream = stream
        self._wait = wait
        self._deltas = cast("AsyncGenerator[list[Delta]]", aiter(stream))
        self._turn = asyncio.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: Any) -> None:
        self._wait(self._close())

    def accepted(self) -> RequestAccepted:
        """Waits until the request is queued; raises the ServingError when it is refused."""
        accepted: RequestAccepted = self._wait(self._stream.accepted())
        return accepted

    def __iter__(self) -> Iterator[list[Delta]]:
        while (arrived := self._wait(self._next())) is not None:
            yield arrived

    @property
    def result(self) -> RequestFinished:
        return self._stream.result

    async def _next(self) -> list[Delta] | None:
        async with self._turn:
            return await anext(self._deltas, None)

    async def _close(self) -> None:
        """Wakes a look that Ctrl-C left behind; the generator can be closed once that has ended."""
        self._stream.cancel()
        async with self._turn:
            await self._deltas.aclose()


async def _settle() -> None:
    """Let what was cancelled clean up."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=END_SECONDS)


async def _call(function: Callable[..., T], *arguments: Any) -> T:
    return function(*arguments)
