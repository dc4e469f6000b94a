"""Tool calls of an answer in the shapes of the OpenAI API. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from mlx_serving.actors.messages.values import ToolCallPart


@attrs.define
class WholeCalls:
    """The calls of one answer as they grow."""

    _heads: dict[int, ToolCallPart] = attrs.field(factory=dict)
    _arguments: dict[int, list[str]] = attrs.field(factory=dict)

    def add(self, parts: Iterable[ToolCallPart]) -> None:
        for part in parts:
            if part.name is not None:
                self._heads[part.index] = part
            self._arguments.setdefault(part.index, []).append(part.arguments)

    def body(self) -> list[dict[str, Any]]:
        """`[{id, type, function: {name, arguments}}]`, in order."""
        return [
            {
                "id": head.id,
                "type": "function",
                "function": {"name": head.name, "arguments": "".join(self._arguments[index])},
            }
            for index, head in sorted(self._heads.items())
        ]
