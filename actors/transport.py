"""Typed ends over inproc and ipc: what binds, connects, waits and gives up.

An end belongs to the thread that made it, which also closes it. Nothing here ever blocks on a send: an end whose
queue is full says so and the caller decides. Frames that cannot be decoded are counted and reported, never raised
into a loop.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable
from typing import Any

import attrs
import zmq

from mlx_serving.actors.addresses import Endpoints
from mlx_serving.actors.codec import decode, encode
from mlx_serving.actors.errors import ProtocolError
from mlx_serving.actors.messages.envelope import Envelope

# Plain integers: combining zmq's flag enumerations costs more than the call that takes them.
_NOBLOCK = int(zmq.NOBLOCK)
_MORE = int(zmq.SNDMORE | zmq.NOBLOCK)
_POLLIN = int(zmq.POLLIN)


@attrs.frozen
class SocketOptions:
    """Limits of every socket: messages queued a side, milliseconds of linger, bytes of the largest frame."""

    high_water_mark: int = 100_000
    linger_ms: int = 500
    max_message_bytes: int = 64 << 20


class Bus:
    """The sockets' context. One a process; closed last, when every end is."""

    def __init__(self, options: SocketOptions | None = None) -> None:
        self.options = options or SocketOptions()
        self._context = zmq.Context(io_threads=1)

    def socket(self, kind: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.set_hwm(self.options.high_water_mark)
        socket.linger = self.options.linger_ms
        socket.set(zmq.MAXMSGSIZE, self.options.max_message_bytes)
        return socket

    def close(self, timeout: float = 5.0) -> bool:
        """End the context; False when an end was still open after `timeout` seconds (its thread is stuck)."""
        ender = threading.Thread(target=self._context.term, name="bus-end", daemon=True)
        ender.start()
        ender.join(timeout)
        return not ender.is_alive()


@attrs.frozen
class Attachment:
    """Where a frontend connects; an inproc address is good only together with the bus that it lives on."""

    address: str
    bus: Bus | None = None


class _End:
    """What all ends share: the socket, and how it closes."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket

    def close(self) -> None:
        self._socket.close()

    def _waits(self) -> bool:
        """Whether something is to be received: half the price of a receive that fails."""
        return bool(int(self._socket.get(zmq.EVENTS)) & _POLLIN)

    @property
    def closed(self) -> bool:
        return self._socket.closed

    @property
    def pollable(self) -> Any:
        return self._socket


class _Sender(_End):
    """An end that sends one frame an envelope."""

    def send(self, envelope: Envelope) -> bool:
        """False when the other side does not keep up and the queue is full."""
        try:
            self._socket.send(encode(envelope), _NOBLOCK)
        except zmq.Again:
            return False
        return True


class _Receiver(_End):
    """An end that receives one frame an envelope; refused frames go to `on_refused` with the reason."""

    def __init__(self, socket: zmq.Socket[bytes], on_refused: Callable[[ProtocolError], None]) -> None:
        super().__init__(socket)
        self._on_refused = on_refused

    def receive(self) -> Envelope | None:
        """The next envelope, or None when nothing waits."""
        while self._waits():
            try:
                return decode(self._socket.recv(_NOBLOCK))
            except ProtocolError as error:
                self._on_refused(error)
        return None


def _bind(socket: zmq.Socket[bytes], endpoints: Endpoints) -> None:
    socket.bind(endpoints.ipc)
    if endpoints.inproc is not None:
        socket.bind(endpoints.inproc)


class Inbox(_Receiver):
    """The PULL end where an actor receives. Refused frames go to `on_refused` with the reason."""

    def __init__(self, bus: Bus, endpoints: Endpoints, on_refused: Callable[[ProtocolError], None]) -> None:
        super().__init__(bus.socket(zmq.PULL), on_refused)
        _bind(self._socket, endpoints)


class Outbox(_Sender):
    """The PUSH end towards one other actor's inbox."""

    def __init__(self, bus: Bus, address: str) -> None:
        super().__init__(bus.socket(zmq.PUSH))
        self._socket.connect(address)


class Door(_End):
    """The ROUTER end where frontends attach; a frontend is known by the bytes of its connection."""

    def __init__(self, bus: Bus, endpoints: Endpoints, on_refused: Callable[[ProtocolError], None]) -> None:
        super().__init__(bus.socket(zmq.ROUTER))
        self._socket.set(zmq.ROUTER_MANDATORY, 1)
        self._on_refused = on_refused
        _bind(self._socket, endpoints)

    def receive(self) -> tuple[bytes, Envelope] | None:
        """The next frontend and its envelope, or None when nothing waits."""
        while self._waits():
            try:
                peer, *frames = self._socket.recv_multipart(_NOBLOCK)
                return peer, decode(b"".join(frames))
            except ProtocolError as error:
                self._on_refused(error)
        return None

    def send(self, peer: bytes, envelope: Envelope) -> bool:
        """False when the frontend is gone or does not read."""
        frame = encode(envelope)
        try:
            self._socket.send(peer, _MORE)
            self._socket.send(frame, _NOBLOCK)
        except zmq.ZMQError:
            return False
        return True


class Link(_Receiver, _Sender):
    """The DEALER end of a frontend, used from one asyncio loop through its file descriptor."""

    def __init__(self, bus: Bus, address: str, on_refused: Callable[[ProtocolError], None]) -> None:
        super().__init__(bus.socket(zmq.DEALER), on_refused)
        self._socket.routing_id = uuid.uuid4().bytes
        self._socket.connect(address)

    @property
    def fd(self) -> int:
        """Edge-triggered: after it fires, and after each send, `receive` until None."""
        return int(self._socket.get(zmq.FD))


class Waker:
    """Lets another thread end this thread's wait."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._lock = threading.Lock()
        self._awake = False
        self._open = True

    @property
    def pollable(self) -> int:
        return self._read

    def wake(self) -> None:
        """From any thread; wakes once however often it is called before `rest`. Nothing after `close`."""
        with self._lock:
            if self._open and not self._awake:
                self._awake = True
                os.write(self._write, b"\0")

    def rest(self) -> None:
        """The wait is over; the next `wake` ends the next one."""
        if self._awake:
            with self._lock:
                os.read(self._read, 1)
                self._awake = False

    def close(self) -> None:
        with self._lock:
            self._open = False
            os.close(self._read)
            os.close(self._write)


class Poller:
    """Waits for any of several ends."""

    def __init__(self) -> None:
        self._poller = zmq.Poller()

    def add(self, end: _End | Waker) -> None:
        self._poller.register(end.pollable, zmq.POLLIN)

    def wait(self, seconds: float) -> bool:
        """True when an end has something, False after `seconds`."""
        return bool(self._poller.poll(max(0, round(seconds * 1000))))
