"""One HTTP request's generation: a stream per prompt, numbered and cancelled together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from types import TracebackType

import attrs

from mlx_serving.actors.errors import Cancelled, ServingError
from mlx_serving.actors.messages.frontend import Delta
from mlx_serving.actors.messages.values import Timings, Usage
from mlx_serving.frontends.client import Client, Stream
from mlx_serving.frontends.http.answers import slowest, total_usage
from mlx_serving.frontends.http.openai import Call

Consumer = Callable[[list[Delta]], Awaitable[None]]


class Exchange:
    """A running call. Leaving the context early cancels what still runs.

    `cancel` may say why: that error then takes the place of `Cancelled`. `is_abandoned` says that the
    caller is gone, so that nobody waits for an answer.
    """

    def __init__(self, client: Client, call: Call) -> None:
        self._client = client
        self._call = call
        self._streams: list[Stream] = []
        self._open = AsyncExitStack()
        self.reason: ServingError | None = None
        self.is_abandoned = False

    async def __aenter__(self) -> Exchange:
        for request in self._call.requests:
            self._streams.append(await self._open.enter_async_context(self._client.submit(request)))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    def cancel(self, reason: ServingError | None = None) -> None:
        """Cancel every stream; whoever waits for them gets `reason`, or `Cancelled`."""
        self.reason = self.reason or reason
        for stream in self._streams:
            stream.cancel()

    def abandon(self) -> None:
        """The caller is gone."""
        self.is_abandoned = True
        self.cancel()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Cancelled as cancelled:
            raise self.reason or cancelled from None

    async def accepted(self) -> str:
        """Wait until every prompt is queued; the name of the model that answers. Raises what refuses one."""
        with self._explained():
            answers = [await stream.accepted() for stream in self._streams]
            return answers[0].model

    async def begun(self, seconds: float) -> None:
        """Wait until every prompt has something to read, at most so long. Raises what failed until then."""
        with self._explained(), suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for stream in self._streams:
                    await stream.begun()

    async def deliver(self, consume: Consumer) -> None:
        """Hand all deltas to `consume` until every choice has ended. Raises the first stream's failure."""
        with self._explained():
            if len(self._streams) > 1:
                await self._deliver_all(consume)
            else:
                async for deltas in self._streams[0]:
                    await consume(deltas)

    async def _deliver_all(self, consume: Consumer) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for position, stream in enumerate(self._streams):
                    group.create_task(self._deliver_shifted(stream, position * self._call.n, consume))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _deliver_shifted(self, stream: Stream, shift: int, consume: Consumer) -> None:
        async for deltas in stream:
            await consume([attrs.evolve(delta, index=delta.index + shift) for delta in deltas])

    def result(self) -> tuple[Usage, Timings]:
        """Of all prompts together, once `deliver` has returned."""
        results = [stream.result for stream in self._streams]
        usage = total_usage([result.usage for result in results])
        return usage, slowest([result.timings for result in results])
