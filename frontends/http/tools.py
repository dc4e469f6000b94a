"""Tools, the choice among them and calls of earlier turns, as kinds of JSON value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import orjson

from mlx_serving.actors.messages.values import Tool, ToolCall, ToolMode, ToolUse
from mlx_serving.frontends.http.kinds import Choice, Flag, ListOf, Object, Parameter, Schema, Text, Whole
from mlx_serving.frontends.http.problems import Problems, shown

MOST_TOOLS = 512
DEEPEST = 64
_MODES: tuple[ToolMode, ...] = ("none", "auto", "required")
NO_PARAMETERS = '{"type":"object","properties":{}}'


@attrs.frozen
class AnyObject:
    """Any JSON object, returned as its text."""

    json_type = dict
    wants = f"an object, nested at most {DEEPEST} deep"

    def check(self, value: Any, path: str, problems: Problems) -> str:
        if type(value) is not dict or not _is_shallow(value):
            problems.add(path, f"must be {self.wants}, got {shown(value)}")
            return "{}"
        return orjson.dumps(value).decode()

    def schema(self) -> Schema:
        return {"type": "object"}


def _is_shallow(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [item for each in level for item in _items(each)]
        if not level:
            return True
    return False


def _items(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


@attrs.frozen
class ToolName:
    """The name of a function."""

    json_type = str
    wants = "1 to 64 letters, digits, and . _ -"

    def check(self, value: Any, path: str, problems: Problems) -> Any:
        if type(value) is not str or not 1 <= len(value) <= 64 or not _is_name(value):
            problems.add(path, f"must be {self.wants}, got {shown(value)}")
        return value

    def schema(self) -> Schema:
        return {"type": "string", "pattern": "^[a-zA-Z0-9._-]{1,64}$"}


def _is_name(value: str) -> bool:
    return all(char.isascii() and (char.isalnum() or char in "._-") for char in value)


_FUNCTION_TYPE = Parameter("type", Choice(("function",)), required=True)
_FUNCTION = Object(
    (
        Parameter("name", ToolName(), required=True),
        Parameter("description", Text(), "Shown to the model."),
        Parameter("parameters", AnyObject(), "JSON Schema of the arguments; left out, there are none."),
        Parameter("strict", Flag(), "Refuse what of the schema cannot be enforced."),
    )
)
_TOOL = Object((_FUNCTION_TYPE, Parameter("function", _FUNCTION, required=True)))


@attrs.frozen
class ToolKind:
    """One tool, returned as Tool."""

    json_type = dict
    wants = 'a tool such as {"type": "function", "function": {"name": "…"}}'

    def check(self, value: Any, path: str, problems: Problems) -> Tool:
        function = _TOOL.check(value, path, problems).get("function", {})
        return Tool(
            function.get("name", ""),
            function.get("parameters", NO_PARAMETERS),
            function.get("description"),
            function.get("strict", False),
        )

    def schema(self) -> Schema:
        return _TOOL.schema()


TOOLS = ListOf(ToolKind(), 0, MOST_TOOLS)

_NAMED = Object(
    (
        _FUNCTION_TYPE,
        Parameter("function", Object((Parameter("name", ToolName(), required=True),)), required=True),
    )
)


@attrs.frozen
class ToolChoice:
    """A mode, or one function; returned as mode and name."""

    json_type = object
    wants = 'one of none, auto, required, or {"type": "function", "function": {"name": "…"}}'

    def check(self, value: Any, path: str, problems: Problems) -> tuple[ToolMode, str]:
        if type(value) is dict:
            return "named", _NAMED.check(value, path, problems).get("function", {}).get("name", "")
        for mode in _MODES:
            if value == mode:
                return mode, ""
        problems.add(path, f"must be {self.wants}, got {shown(value)}")
        return "auto", ""

    def schema(self) -> Schema:
        return {"anyOf": [{"type": "string", "enum": list(_MODES)}, _NAMED.schema()]}


_CALLED = Object(
    (
        Parameter("name", Text(1, 256), required=True),
        Parameter("arguments", Text(), "JSON text.", required=True),
        Parameter("parsed_arguments", AnyObject(), "Ignored: the OpenAI client keeps it beside arguments."),
    )
)
_CALL = Object(
    (
        _FUNCTION_TYPE,
        Parameter("id", Text(0, 256)),
        Parameter("index", Whole(0, 2**31 - 1), "Ignored."),
        Parameter("function", _CALLED, required=True),
    )
)


@attrs.frozen
class CallKind:
    """A call of an earlier turn, returned as ToolCall."""

    json_type = dict
    wants = 'a call such as {"id": "…", "type": "function", "function": {"name": "…", "arguments": "{}"}}'

    def check(self, value: Any, path: str, problems: Problems) -> ToolCall:
        call = _CALL.check(value, path, problems)
        function = call.get("function", {})
        return ToolCall(function.get("name", ""), function.get("arguments", ""), call.get("id", ""))

    def schema(self) -> Schema:
        return _CALL.schema()


CALLS = ListOf(CallKind(), shortest=1)


def tool_use(given: Mapping[str, Any]) -> ToolUse:
    """Of a checked body. Without a choice, the model may call tools if there are any."""
    mode, name = given.get("tool_choice", ("auto", ""))
    return ToolUse(given.get("tools", ()), mode, name, given.get("parallel_tool_calls", True))
