"""The load generator: one thread, one selector, bytes only. It runs in a process of its own."""

from __future__ import annotations

import gc
import random
import select
import selectors
import socket
import time
from collections import deque
from collections.abc import Sequence
from time import monotonic

import attrs

from tools.bench.exchange import Exchange, connect
from tools.bench.spec import Load, Outcome, Request

_PATROL = 0.25
"""Seconds between two looks for exchanges that are over their time."""


def arrivals(count: int, rate: float, seed: int) -> list[float]:
    """Seconds from the start at which each of `count` requests of a Poisson process is sent."""
    draw = random.Random(seed)
    moments, now = [], 0.0
    for _ in range(count):
        now += draw.expovariate(rate)
        moments.append(now)
    return moments


@attrs.define(eq=False)
class Generator:
    """Carries out one load. `run` is called once."""

    load: Load
    cpu_seconds: float = 0.0
    """Processor time of the driving alone, without parsing."""
    _selector: selectors.BaseSelector = attrs.field(factory=selectors.DefaultSelector)
    _idle: list[socket.socket] = attrs.field(factory=list)
    _active: set[Exchange] = attrs.field(factory=set)
    _paused: list[tuple[float, Exchange]] = attrs.field(factory=list)
    _over: list[Exchange] = attrs.field(factory=list)
    _unsent: list[Outcome] = attrs.field(factory=list)
    _patrolled: float = 0.0

    def run(self) -> list[Outcome]:
        """Send everything, wait for every answer, then parse. Outcomes stand in the order of the requests."""
        gc.disable()
        before = time.process_time()
        try:
            self._drive()
        finally:
            self.cpu_seconds = time.process_time() - before
            gc.enable()
            self._close()
        outcomes = [exchange.outcome() for exchange in self._over] + self._unsent
        return sorted(outcomes, key=lambda outcome: outcome.index)

    def _drive(self) -> None:
        waiting = deque(enumerate(self.load.requests))
        due = deque(self._due())
        while waiting or self._active:
            while waiting and self._may_start(due):
                self._start(*waiting.popleft())
            self._read(self._patience(bool(waiting), due))
            self._resume()
            self._patrol()
            if self.load.tick:
                time.sleep(self.load.tick)

    def _due(self) -> Sequence[float]:
        if self.load.rate is None:
            return ()
        now = monotonic()
        return [now + after for after in arrivals(len(self.load.requests), self.load.rate, self.load.seed)]

    def _may_start(self, due: deque[float]) -> bool:
        if self.load.rate is None:
            return len(self._active) < self.load.clients
        if due and due[0] <= monotonic():
            due.popleft()
            return True
        return False

    def _patience(self, waiting: bool, due: deque[float]) -> float:
        """How long a round may wait for bytes: until the next thing that must happen by the clock."""
        moments = [monotonic() + _PATROL, *(until for until, _ in self._paused)]
        if waiting and due:
            moments.append(due[0])
        return max(0.0, min(moments) - monotonic())

    def _start(self, index: int, request: Request) -> None:
        try:
            connection = self._connection(request)
        except OSError as error:
            now = monotonic()
            self._unsent.append(Outcome(index, now, now, error="connect", detail=str(error)))
            return
        exchange = Exchange(index, request, self.load, connection)
        self._active.add(exchange)
        try:
            exchange.send()
        except OSError:
            exchange.end("send")
            self._finish(exchange, registered=False)
            return
        self._selector.register(connection, selectors.EVENT_READ, exchange)

    def _connection(self, request: Request) -> socket.socket:
        while self._idle and request.pause_after is None:
            connection = self._idle.pop()
            if not select.select([connection], [], [], 0)[0]:
                return connection
            connection.close()  # the server closed it meanwhile
        return connect(self.load, small=request.pause_after is not None)

    def _read(self, patience: float) -> None:
        for key, _ in self._selector.select(patience):
            exchange: Exchange = key.data
            if exchange.receive():
                self._finish(exchange)
            elif exchange.wants_pause:
                exchange.paused_at = monotonic()
                self._selector.unregister(exchange.connection)
                self._paused.append((exchange.paused_at + exchange.request.pause_seconds, exchange))

    def _resume(self) -> None:
        if not self._paused:
            return
        now = monotonic()
        for until, exchange in self._paused:
            if until <= now and exchange in self._active:
                self._selector.register(exchange.connection, selectors.EVENT_READ, exchange)
        self._paused = [(until, exchange) for until, exchange in self._paused if until > now]

    def _patrol(self) -> None:
        now = monotonic()
        if now - self._patrolled < _PATROL:
            return
        self._patrolled = now
        for exchange in [each for each in self._active if now - each.started > self.load.timeout]:
            exchange.end("timeout")
            self._finish(exchange, registered=exchange.connection in self._selector.get_map())

    def _finish(self, exchange: Exchange, registered: bool = True) -> None:
        if registered:
            self._selector.unregister(exchange.connection)
        self._active.discard(exchange)
        self._over.append(exchange)
        if exchange.reusable:
            self._idle.append(exchange.connection)
        else:
            exchange.connection.close()

    def _close(self) -> None:
        for exchange in self._active:
            exchange.connection.close()
        for connection in self._idle:
            connection.close()
        self._selector.close()
