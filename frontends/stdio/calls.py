"""The requests that are being worked on: bounded, cancellable by their id."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import attrs

from mlx_serving.actors.errors import Cancelled
from mlx_serving.frontends.stdio.rpc import RequestId

MOST_PENDING = 100
"""Requests that may be pending: what hosts keep to; a further one is refused as overload."""
_ABANDON_SECONDS = 0.05


@attrs.define(eq=False)
class Call:
    """One request on its way to its answer. `request_id` None: a notification, to which no answer is due."""

    request_id: RequestId | None
    task: asyncio.Task[None] | None = None
    _begun: bool = False
    _settled: bool = False
    _cancelled: bool = False
    _then: list[Callable[[], None]] = attrs.field(factory=list)

    def begin(self) -> None:
        """The work begins. Raises Cancelled if it was cancelled before."""
        self._begun = True
        if self._cancelled:
            raise Cancelled("the request was cancelled")

    def settle(self) -> None:
        """The outcome is known and only waits to be written: too late to cancel."""
        self._settled = True

    def cancel(self) -> None:
        """Break the work off, unless it is settled. Work that has not begun is left to find out by itself."""
        self._cancelled = True
        if self._begun and not self._settled and self.task is not None:
            self.task.cancel()

    def after_answer(self, action: Callable[[], None]) -> None:
        """Do this once the answer is on its way."""
        self._then.append(action)

    def answered(self) -> None:
        """The answer is on its way."""
        for action in self._then:
            action()


class Calls:
    """Every pending request."""

    def __init__(self) -> None:
        self._pending: dict[asyncio.Task[None], Call] = {}

    @property
    def is_full(self) -> bool:
        return len(self._pending) >= MOST_PENDING

    def start(self, call: Call, work: Coroutine[Any, Any, None]) -> None:
        """Work on a call beside the others."""
        task = call.task = asyncio.create_task(work, name=f"call {call.request_id}")
        self._pending[task] = call
        task.add_done_callback(self._pending.pop)

    def cancel(self, request_id: Any) -> None:
        """Cancel the calls of this id. An unknown one is no mistake: its answer is on the way."""
        for call in list(self._pending.values()):
            ours = call.request_id
            if ours is not None and type(ours) is type(request_id) and ours == request_id:
                call.cancel()

    def cancel_all(self, but: Call | None = None) -> None:
        for call in list(self._pending.values()):
            if call is not but:
                call.cancel()

    async def ended(self, but: Call | None = None) -> None:
        """Return when no call is left."""
        while left := [task for task, call in self._pending.items() if call is not but]:
            await asyncio.wait(left)

    async def abandon(self) -> None:
        """End every call, answered or not."""
        while self._pending:
            for task in self._pending:
                task.cancel()
            await asyncio.wait(self._pending, timeout=_ABANDON_SECONDS)
