"""What the methods share while one host is connected."""

from __future__ import annotations

import asyncio

import attrs

from mlx_serving.config.schema import Settings
from mlx_serving.frontends.client import Client
from mlx_serving.frontends.stdio.calls import Call, Calls
from mlx_serving.frontends.stdio.streams import Streams
from mlx_serving.frontends.stdio.wire import Wire


@attrs.define(eq=False)
class Session:
    """One host's connection to the runtime."""

    client: Client
    settings: Settings
    wire: Wire
    streams: Streams
    calls: Calls
    closing: bool = False
    """Nothing new is taken in."""
    stopping: asyncio.Event = attrs.field(factory=asyncio.Event)
    """Set when the host has asked for the end and was answered, or when the runtime ends by itself."""
    _served: dict[str, str] = attrs.field(factory=dict)

    def learn(self, model_id: str, name: str) -> None:
        """The host loaded the model `name` under its own `model_id`, an alias or the name for a folder."""
        self._served[model_id] = name

    def forget(self, model_id: str) -> None:
        self._served.pop(model_id, None)

    def served_name(self, model_id: str) -> str:
        """The runtime's name of the host's model, of which `model_id:adapter` names an adapter."""
        if model_id in self._served:
            return self._served[model_id]
        base, colon, adapter = model_id.rpartition(":")
        return f"{self._served[base]}:{adapter}" if colon and base in self._served else model_id

    def host_name(self, name: str) -> str:
        """The inverse: the id under which the host loaded the model, else its name."""
        return next((model_id for model_id, served in self._served.items() if served == name), name)

    async def drain(self, but: Call | None = None) -> None:
        """Return when every request but this is answered and every stream has told its end, or time is up."""
        try:
            async with asyncio.timeout(self.settings.supervision.drain_seconds):
                await self.calls.ended(but)
                await self.streams.ended()
        except TimeoutError:
            return

    async def cancel_everything(self, but: Call | None = None) -> None:
        """Take nothing in any more and cancel what runs; return when the host was told, or time is up."""
        self.closing = True
        self.calls.cancel_all(but)
        self.streams.cancel_all()
        await self.drain(but)

    async def abandon(self) -> None:
        """Stop talking to the host."""
        await self.calls.abandon()
        await self.streams.abandon()
