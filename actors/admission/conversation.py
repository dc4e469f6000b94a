"""A conversation as text: messages, tools and variables in the terms of the model's chat template."""

from __future__ import annotations

import json
from typing import Any

import attrs

from mlx_serving.actors.errors import InvalidParameter, TokenizerFailed, UnsupportedParameter
from mlx_serving.actors.messages.admission import GenerationRequested
from mlx_serving.actors.messages.values import ChatMessage, Tool, ToolCall, ToolUse
from mlx_serving.actors.models.chat_template import ChatTemplate
from mlx_serving.actors.models.tokenizer import TextTokenizer

JSON = Any

_RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now"})
_SWITCHES = ("enable_thinking", "thinking")
"""Variables by which templates let reasoning be switched on and off."""


@attrs.frozen
class TemplateArguments:
    """What a template gets besides the messages. `tools` None: the request has none to offer."""

    tools: list[dict[str, JSON]] | None = None
    variables: dict[str, JSON] = attrs.field(factory=dict)


NOTHING = TemplateArguments()


def template_arguments(chat: ChatTemplate, asked: GenerationRequested) -> TemplateArguments:
    """Those of a request. Raises UnsupportedParameter for what the template has no use for, by its name."""
    offered = offered_tools(asked.tool_use)
    if offered and not chat.has_tools:
        raise UnsupportedParameter("tools: this model's chat template does not show tools to the model", field="tools")
    variables = _variables(chat, asked.template_arguments)
    if asked.reasoning_effort is not None:
        variables = {**_effort(chat, asked.reasoning_effort), **variables}
    return TemplateArguments([_tool(tool) for tool in offered] or None, variables)


def offered_tools(use: ToolUse) -> tuple[Tool, ...]:
    """What the model is told of: nothing in mode `none`."""
    return () if use.mode == "none" else use.tools


def _tool(tool: Tool) -> dict[str, JSON]:
    function: dict[str, JSON] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": {**function, "parameters": json.loads(tool.parameters)}}


def _variables(chat: ChatTemplate, text: str) -> dict[str, JSON]:
    variables: dict[str, JSON] = json.loads(text)
    if not variables:
        return {}
    known = _known(chat)
    for name in variables:
        if name not in known:
            there = ", ".join(sorted(known)) or "none"
            raise UnsupportedParameter(
                f"chat_template_kwargs.{name[:60]}: this model's chat template does not read it; it reads {there}",
                field=f"chat_template_kwargs.{name[:60]}",
            )
    return variables


def _known(chat: ChatTemplate) -> frozenset[str]:
    return frozenset().union(*map(chat.variables, chat.sources)) - _RESERVED - frozenset(chat.special_tokens)


def _effort(chat: ChatTemplate, effort: str) -> dict[str, JSON]:
    known = _known(chat)
    if "reasoning_effort" in known:
        return {"reasoning_effort": effort}
    switch = next((name for name in _SWITCHES if name in known), None)
    if switch is not None:
        return {switch: effort != "none"}
    if effort == "none":
        return {}
    raise UnsupportedParameter(
        "reasoning_effort: this model's chat template knows no degrees of reasoning; leave it out",
        field="reasoning_effort",
    )


def chat_text(
    tokenizer: TextTokenizer,
    messages: tuple[ChatMessage, ...],
    asks: bool = True,
    arguments: TemplateArguments = NOTHING,
) -> str:
    """The prompt text of a conversation, at its end asking for an answer unless not `asks`.

    Raises TokenizerFailed when the model has no template or it refuses.
    """
    if not tokenizer.has_chat_template:
        raise TokenizerFailed("this model has no chat template; send a prompt instead", field="messages")
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    as_text = bool(names) and tokenizer.chat.wants_argument_text
    turns = [_turn(message, names, as_text) for message in messages]
    return tokenizer.chat.render(
        turns, tools=arguments.tools, add_generation_prompt=asks, variables=arguments.variables
    )


def _turn(message: ChatMessage, names: dict[str, str], as_text: bool) -> dict[str, JSON]:
    """A tool's answer is given the name of what was called, which some templates show."""
    name = message.name
    if name is None and message.tool_call_id is not None:
        name = names.get(message.tool_call_id)
    turn = {
        "role": message.role,
        "content": message.content,
        "name": name,
        "tool_call_id": message.tool_call_id,
        "reasoning_content": message.reasoning,
        "tool_calls": [_call(call, as_text) for call in message.tool_calls] or None,
    }
    return {key: value for key, value in turn.items() if value is not None}


def _call(call: ToolCall, as_text: bool) -> dict[str, JSON]:
    arguments = call.arguments if as_text else _object(call.arguments)
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _object(text: str) -> JSON:
    """Arguments that are no object, as a model may have written them, are left as they are."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, dict) else text


def check_tools(use: ToolUse) -> None:
    """Raise InvalidParameter that names the first thing wrong in a request's tools and its choice among them."""
    seen: set[str] = set()
    for index, tool in enumerate(use.tools):
        path = f"tools[{index}].function"
        if tool.name in seen:
            raise InvalidParameter(f"{path}.name: {tool.name} is the name of an earlier tool", field=f"{path}.name")
        seen.add(tool.name)
        _check_schema(tool.parameters, f"{path}.parameters")
    if use.mode == "named" and use.name not in seen:
        names = ", ".join(sorted(seen)) or "none"
        raise InvalidParameter(
            f"tool_choice.function.name: {use.name} is not among the tools: {names}",
            field="tool_choice.function.name",
        )
    if use.mode == "required" and not use.tools:
        raise InvalidParameter("tool_choice: required needs tools", field="tool_choice")


def _check_schema(text: str, path: str) -> None:
    try:
        schema = json.loads(text)
    except ValueError:
        schema = None
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        raise InvalidParameter(f"{path} must be the JSON Schema of an object", field=path)
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict):
        raise InvalidParameter(f"{path}.properties must be an object", field=f"{path}.properties")
    if not isinstance(required, list) or not all(isinstance(each, str) for each in required):
        raise InvalidParameter(f"{path}.required must be a list of names", field=f"{path}.required")
