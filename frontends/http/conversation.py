"""The messages of a chat body and the prompts of a completion body, as kinds of JSON value."""

from __future__ import annotations

from typing import Any

import attrs

from mlx_serving.actors.messages.values import ChatMessage
from mlx_serving.frontends.http.kinds import (
    AnyOf,
    Choice,
    ListOf,
    Neutral,
    Object,
    Parameter,
    Schema,
    Text,
    TokenIds,
)
from mlx_serving.frontends.http.problems import Problems, shown
from mlx_serving.frontends.http.tools import CALLS, AnyObject

MOST_PROMPTS = 128
_NOT_TEXT = ("image_url", "input_audio", "video_url", "file", "refusal")

_TEXT_PART = Object(
    (
        Parameter("type", Choice(("text",)), required=True),
        Parameter("text", Text(), required=True),
    )
)


@attrs.frozen
class ContentPart:
    """One part of a message's content; only text is offered. Returned as its text."""

    json_type = dict
    wants = 'a part such as {"type": "text", "text": "…"}'

    def check(self, value: Any, path: str, problems: Problems) -> Any:
        if type(value) is dict and value.get("type") in _NOT_TEXT:
            problems.refuse(path, f"content of type {value['type']} is not supported by this server, only text")
            return ""
        return _TEXT_PART.check(value, path, problems).get("text", "")

    def schema(self) -> Schema:
        return _TEXT_PART.schema()


_CONTENT = AnyOf((Text(), ListOf(ContentPart(), shortest=1)))
_ANY_ROLE = (
    Parameter("name", Text(1, 256), "Handed to the chat template."),
    Parameter("reasoning_content", Text(), "What the assistant reasoned."),
    Parameter("reasoning", Text(), "Another name of reasoning_content."),
    Parameter("parsed", AnyObject(), "Ignored: the OpenAI client keeps it beside content."),
    Parameter("function_call", Neutral(), "Not supported."),
    Parameter("refusal", Neutral(), "Not supported."),
    Parameter("annotations", Neutral(([],)), "Not supported."),
    Parameter("audio", Neutral(), "Not supported."),
)
_MESSAGE = Object(
    (
        Parameter("role", Choice(("system", "developer", "user", "assistant", "tool")), required=True),
        Parameter("content", _CONTENT, required=True),
        Parameter("tool_call_id", Text(1, 256), "Of a tool's message: which call it answers."),
        Parameter("tool_calls", Neutral(([],)), "Only on messages of the assistant."),
        *_ANY_ROLE,
    )
)
_CALLING = Object(
    (
        Parameter("role", Choice(("assistant",)), required=True),
        Parameter("content", _CONTENT, "May be left out."),
        Parameter("tool_calls", CALLS, "What the assistant called.", required=True),
        *_ANY_ROLE,
    )
)


@attrs.frozen
class Message:
    """One turn, returned as ChatMessage: parts are joined, and the developer's role is the system's."""

    json_type = dict
    wants = 'a message such as {"role": "user", "content": "…"}'

    def check(self, value: Any, path: str, problems: Problems) -> Any:
        kind = _CALLING if type(value) is dict and value.get("tool_calls") else _MESSAGE
        message = kind.check(value, path, problems)
        content = message.get("content", "")
        if problems.found:
            return None
        return ChatMessage(
            role="system" if message["role"] == "developer" else message["role"],
            content=content if isinstance(content, str) else "".join(content),
            name=message.get("name"),
            tool_call_id=message.get("tool_call_id"),
            tool_calls=message.get("tool_calls") or (),
            reasoning=message.get("reasoning_content", message.get("reasoning")),
        )

    def schema(self) -> Schema:
        return {"anyOf": [_MESSAGE.schema(), _CALLING.schema()]}


MESSAGES = ListOf(Message(), shortest=1)


@attrs.frozen
class Prompts:
    """A string, a list of strings, a list of token ids or a list of such lists; returned as a list."""

    json_type = object
    wants = "a string, a list of strings, a list of token ids, or a list of such lists, none of them empty"

    def check(self, value: Any, path: str, problems: Problems) -> list[str | list[int]]:
        if type(value) is str and value:
            return [value]
        if type(value) is not list or not value:
            problems.add(path, f"must be {self.wants}, got {shown(value)}")
            return []
        if type(value[0]) is str:
            return list(ListOf(Text(1), 1, MOST_PROMPTS).check(value, path, problems))
        if type(value[0]) is list:
            return list(ListOf(TokenIds(1), 1, MOST_PROMPTS).check(value, path, problems))
        return [TokenIds(1).check(value, path, problems)]

    def schema(self) -> Schema:
        text, ids = Text(1), TokenIds(1)
        lists = (ListOf(text, 1, MOST_PROMPTS), ids, ListOf(ids, 1, MOST_PROMPTS))
        return {"anyOf": [text.schema(), *(kind.schema() for kind in lists)]}
