"""The one typed door to the actors: ask, submit, stream, cancel.

A `Client` is one connection to admission, used from one asyncio loop. Every wait has an end; every failure is a
ServingError. Credits flow back as the consumer reads: one that stops reading pauses its own stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import uuid
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any

import attrs

from mlx_serving.actors.base import socket_options
from mlx_serving.actors.errors import ActorUnavailable, Cancelled, ErrorInfo, ProtocolError, ServingError
from mlx_serving.actors.logs import get_logger
from mlx_serving.actors.messages.admission import (
    CreditsReturned,
    FrontendAttached,
    GenerationRequested,
    RequestCancelled,
)
from mlx_serving.actors.messages.envelope import Envelope
from mlx_serving.actors.messages.frontend import (
    AdmissionAlive,
    Delta,
    Refused,
    RequestAccepted,
    RequestFailed,
    RequestFinished,
    TokensDelivered,
)
from mlx_serving.actors.transport import Attachment, Bus, Link
from mlx_serving.config.schema import Settings

RECEIVE_LIMIT = 64
"""Frames taken in before other tasks of the loop have their turn."""


class Stream:
    """The answer to one request. Iterate it to its end, `cancel` it, or leave its `async with` early."""

    def __init__(self, client: Client, request: GenerationRequested) -> None:
        self._client = client
        self._request_id = request.request_id
        self._refund_at = max(1, request.window // 4)
        self._deltas: list[Delta] = []
        self._taken: dict[int, int] = {}
        self._accepted: RequestAccepted | None = None
        self._result: RequestFinished | None = None
        self._error: ServingError | None = None
        self._news: asyncio.Future[None] | None = None

    async def accepted(self) -> RequestAccepted:
        """Wait until admission has queued the request; raises why it was refused."""
        while self._accepted is None:
            if self._error is not None:
                raise self._error
            await self._wait()
        return self._accepted

    async def begun(self) -> None:
        """Wait until there is something to read; raises why there will be nothing."""
        while not self._deltas and self._result is None:
            if self._error is not None:
                raise self._error
            await self._wait()

    @property
    def result(self) -> RequestFinished:
        """Usage and timings; there once the iteration has ended without an error."""
        if self._result is None:
            raise RuntimeError("the stream has not finished")
        return self._result

    async def __aiter__(self) -> AsyncIterator[list[Delta]]:
        """Lists of all deltas that came since the last one. Raises the request's ServingError when it fails."""
        while True:
            if self._deltas:
                deltas, self._deltas = self._deltas, []
                yield deltas
                self._refund(deltas)
            elif self._error is not None:
                raise self._error
            elif self._result is not None:
                return
            else:
                await self._wait()

    def cancel(self) -> None:
        """Tell admission that nobody wants the rest. Iteration then raises Cancelled."""
        if self._result is None and self._error is None:
            self._client.post(RequestCancelled(self._request_id))
            self.fail(Cancelled("the request was cancelled"))

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    # --- called by the client ---------------------------------------------------------------------------------------

    def admit(self, message: RequestAccepted) -> None:
        self._accepted = message
        self._wake()

    def push(self, delta: Delta) -> None:
        self._deltas.append(delta)
        self._wake()

    def finish(self, message: RequestFinished) -> None:
        self._result = message
        self._client.forget(self._request_id)
        self._wake()

    def fail(self, error: ServingError) -> None:
        self._error = error
        self._client.forget(self._request_id)
        self._wake()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def _wait(self) -> None:
        self._news = asyncio.get_running_loop().create_future()
        try:
            await self._news
        finally:
            self._news = None

    def _refund(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            taken = self._taken.get(delta.index, 0) + len(delta.token_ids)
            if taken >= self._refund_at and self._result is None and self._error is None:
                self._client.post(CreditsReturned(self._request_id, delta.index, taken))
                taken = 0
            self._taken[delta.index] = taken


class Client:
    """One frontend's connection to admission."""

    def __init__(self, attachment: Attachment, name: str, settings: Settings) -> None:
        """Use `connect`."""
        self._name = name
        self._settings = settings
        self._log = get_logger(name)
        self._attachment = attachment
        self._own_bus = None if attachment.bus else Bus(socket_options(settings))
        self._loop = asyncio.get_running_loop()
        self._streams: dict[int, Stream] = {}
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count(1)
        self._incarnation: str | None = None
        self._drain_planned = False
        self._link = self._open_link()
        self._keepalive: asyncio.Task[None] | None = None

    @classmethod
    async def connect(
        cls, door: str | Attachment, name: str, settings: Settings, *, timeout: float | None = None
    ) -> Client:
        """Attach to admission. Raises ActorUnavailable when nobody answers within `timeout` seconds."""
        client = cls(door if isinstance(door, Attachment) else Attachment(door), name, settings)
        try:
            await client._greet(timeout or settings.transport.ask_timeout)
        except BaseException:
            await client.close()
            raise
        client._keepalive = asyncio.create_task(client._keep_alive())
        return client

    async def ask(self, message: Any, *, timeout: float | None = None) -> Any:
        """The answer to a question. Raises what admission refused it with, or ActorUnavailable after `timeout`."""
        number = next(self._numbers)
        future = self._answers[number] = self._loop.create_future()
        try:
            self._send(Envelope(message, self._name, number))
            async with asyncio.timeout(timeout or self._settings.transport.ask_timeout):
                answer = await future
        except TimeoutError:
            raise ActorUnavailable(f"no answer to {type(message).__name__}", retry_after=1.0) from None
        finally:
            del self._answers[number]
        if isinstance(answer, Refused):
            raise answer.error.to_exception()
        return answer

    def submit(self, request: GenerationRequested) -> Stream:
        """Send a request; its `request_id` is filled in here."""
        request = attrs.evolve(request, request_id=next(self._numbers))
        stream = self._streams[request.request_id] = Stream(self, request)
        try:
            self._send(Envelope(request, self._name, trace_id=uuid.uuid4().hex))
        except ServingError as error:
            stream.fail(error)
        return stream

    async def close(self) -> None:
        """Cancel what runs and let the connection go."""
        if self._keepalive is not None:
            self._keepalive.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keepalive
        for stream in list(self._streams.values()):
            stream.cancel()
        self._close_link()
        if self._own_bus is not None:
            await asyncio.to_thread(self._own_bus.close)

    # --- for streams ------------------------------------------------------------------------------------------------

    def post(self, message: Any) -> None:
        """Send what needs no answer; a full queue means that admission is gone, which the keepalive notices."""
        with contextlib.suppress(ActorUnavailable):
            self._send(Envelope(message, self._name))

    def forget(self, request_id: int) -> None:
        self._streams.pop(request_id, None)

    # --- the connection ---------------------------------------------------------------------------------------------

    def _open_link(self) -> Link:
        bus = self._attachment.bus or self._own_bus
        assert bus is not None
        link = Link(bus, self._attachment.address, self._refused)
        self._loop.add_reader(link.fd, self._receive)
        return link

    def _close_link(self) -> None:
        self._loop.remove_reader(self._link.fd)
        self._link.close()

    def _refused(self, error: ProtocolError) -> None:
        self._log.warning("frame refused", reason=error.message)

    def _send(self, envelope: Envelope) -> None:
        if not self._link.send(envelope):
            raise ActorUnavailable("admission does not answer", retry_after=1.0)
        self._plan_drain()

    def _plan_drain(self) -> None:
        """The descriptor is edge-triggered: after a send or an unfinished drain, look again in the next turn."""
        if not self._drain_planned:
            self._drain_planned = True
            self._loop.call_soon(self._drain_again)

    def _drain_again(self) -> None:
        self._drain_planned = False
        if not self._link.closed:
            self._receive()

    def _receive(self) -> None:
        for _ in range(RECEIVE_LIMIT):
            envelope = self._link.receive()
            if envelope is None:
                return
            self._dispatch(envelope)
        self._plan_drain()

    def _dispatch(self, envelope: Envelope) -> None:
        message = envelope.message
        if type(message) is TokensDelivered:
            for delta in message.deltas:
                stream = self._streams.get(delta.request_id)
                if stream is not None:
                    stream.push(delta)
        elif envelope.correlation:
            future = self._answers.get(envelope.correlation)
            if future is not None and not future.done():
                future.set_result(message)
        else:
            self._stream_event(message)

    def _stream_event(self, message: Any) -> None:
        stream = self._streams.get(getattr(message, "request_id", -1))
        match message:
            case RequestAccepted() if stream is not None:
                stream.admit(message)
            case RequestFinished() if stream is not None:
                stream.finish(message)
            case RequestFailed() if stream is not None:
                stream.fail(message.error.to_exception())

    # --- keepalive --------------------------------------------------------------------------------------------------

    async def _greet(self, timeout: float) -> None:
        alive = await self.ask(FrontendAttached(self._name), timeout=timeout)
        assert isinstance(alive, AdmissionAlive)
        if self._incarnation not in (None, alive.incarnation):
            self._lose_streams("admission was restarted")
        self._incarnation = alive.incarnation

    async def _keep_alive(self) -> None:
        """Say that we are here; notice when admission is gone or another one, and fail what it had promised."""
        limits = self._settings.admission
        while True:
            await asyncio.sleep(limits.keepalive_seconds)
            try:
                await self._greet(limits.frontend_timeout)
            except ServingError:
                self._lose_streams("admission does not answer")
                self._close_link()
                self._link = self._open_link()

    def _lose_streams(self, reason: str) -> None:
        """End every stream here and, for a link that redelivers, there; questions will get no answer either."""
        error = ErrorInfo(ActorUnavailable.code, reason, retry_after=1.0)
        for request_id, stream in list(self._streams.items()):
            self.post(RequestCancelled(request_id))
            stream.fail(error.to_exception())
        for future in self._answers.values():
            if not future.done():
                future.set_exception(error.to_exception())
