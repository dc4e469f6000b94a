"""Pieces of tool calls as both the OpenAI API and hosts on stdio are told them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from mlx_serving.actors.messages.values import ToolCallPart


def told(parts: Iterable[ToolCallPart]) -> list[dict[str, Any]]:
    """`{index, id, type, function: {name, arguments}}` with the first piece of a call, then index and arguments alone.

    Neighbours of one call are one.
    """
    return [_entry(part) for part in _joined(parts)]


def _joined(parts: Iterable[ToolCallPart]) -> list[ToolCallPart]:
    found: list[ToolCallPart] = []
    for part in parts:
        if found and found[-1].index == part.index and part.name is None:
            found[-1] = attrs.evolve(found[-1], arguments=found[-1].arguments + part.arguments)
        else:
            found.append(part)
    return found


def _entry(part: ToolCallPart) -> dict[str, Any]:
    function = {"arguments": part.arguments}
    if part.name is None:
        return {"index": part.index, "function": function}
    return {"index": part.index, "id": part.id, "type": "function", "function": {"name": part.name, **function}}
