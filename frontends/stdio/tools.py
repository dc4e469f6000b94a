"""Tools, the choice among them and turns of a conversation, as the parameters of `chat`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from mlx_serving.actors.messages.values import ChatMessage, Tool, ToolCall, ToolUse
from mlx_serving.frontends.stdio.parameters import Check, Parameter, choice, flag, many, read, record, string, wrong

DEEPEST = 64
MOST_TOOLS = 512
_NAME = re.compile(r"[a-zA-Z0-9._-]{1,64}")
_MODES = ("none", "auto", "required")


def object_text(value: Any, path: str) -> str:
    """Any object that is not nested too deeply, returned as JSON text."""
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [item for each in level for item in _items(each)]
    if not isinstance(value, dict) or level:
        raise wrong(path, f"an object, nested at most {DEEPEST} deep", value)
    return orjson.dumps(value).decode()


def _items(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _name(value: Any, path: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise wrong(path, "1 to 64 letters, digits, and . _ -", value)
    return value


_FUNCTION_TYPE = Parameter("type", choice("function"), required=True)
_TOOL = (
    _FUNCTION_TYPE,
    Parameter(
        "function",
        record(
            Parameter("name", _name, required=True),
            Parameter("description", string()),
            Parameter("parameters", object_text),
            Parameter("strict", flag),
        ),
        required=True,
    ),
)
_NAMED = (_FUNCTION_TYPE, Parameter("function", record(Parameter("name", _name, required=True)), required=True))


def tool(value: Any, path: str) -> Tool:
    """`{type: "function", function: {name, description?, parameters?, strict?}}`."""
    function = read(value, _TOOL, path)["function"]
    parameters = function.get("parameters", '{"type":"object","properties":{}}')
    return Tool(function["name"], parameters, function.get("description"), function.get("strict", False))


def tool_choice(value: Any, path: str) -> tuple[str, str]:
    """A mode, or `{type: "function", function: {name}}`; returned as mode and name."""
    if isinstance(value, dict):
        return "named", read(value, _NAMED, path)["function"]["name"]
    if value not in _MODES:
        raise wrong(path, "none, auto, required, or an object that names a function", value)
    return value, ""


TOOLS = (
    Parameter("tools", many(tool, longest=MOST_TOOLS)),
    Parameter("tool_choice", tool_choice),
    Parameter("parallel_tool_calls", flag),
)


def tool_use(values: Mapping[str, Any]) -> ToolUse:
    """Of checked parameters."""
    mode, name = values.get("tool_choice", ("auto", ""))
    return ToolUse(values.get("tools", ()), mode, name, values.get("parallel_tool_calls", True))


_CALL = (
    _FUNCTION_TYPE,
    Parameter("id", string(0, 256)),
    Parameter(
        "function",
        record(Parameter("name", string(1, 256), required=True), Parameter("arguments", string(), required=True)),
        required=True,
    ),
)


def _call(value: Any, path: str) -> ToolCall:
    call = read(value, _CALL, path)
    return ToolCall(call["function"]["name"], call["function"]["arguments"], call.get("id", ""))


_COMMON = (Parameter("name", string(1, 256)), Parameter("reasoning_content", string()))
_SPOKEN = (
    Parameter("role", choice("system", "user", "assistant", "tool"), required=True),
    Parameter("content", string(), required=True),
    Parameter("tool_call_id", string(1, 256)),
    *_COMMON,
)
_CALLING = (
    Parameter("role", choice("assistant"), required=True),
    Parameter("content", string()),
    Parameter("tool_calls", many(_call, shortest=1), required=True),
    *_COMMON,
)


def _message(value: Any, path: str) -> ChatMessage:
    calls = isinstance(value, dict) and bool(value.get("tool_calls"))
    given = read(value, _CALLING if calls else _SPOKEN, path)
    return ChatMessage(
        role=given["role"],
        content=given.get("content", ""),
        name=given.get("name"),
        tool_call_id=given.get("tool_call_id"),
        tool_calls=given.get("tool_calls", ()),
        reasoning=given.get("reasoning_content"),
    )


MESSAGES: Check = many(_message, shortest=1)
"""The turns of a conversation, returned as ChatMessages."""
