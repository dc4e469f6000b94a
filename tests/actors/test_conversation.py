"""Conversations with tools as templates take them, and what is refused by name before anything is rendered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import attrs
import pytest
from support.tiny_models import byte_tokenizer

from mlx_serving.actors.admission.answer_format import (
    ParserChoice,
    answer_format,
    check_parsers,
    tool_guidance,
)
from mlx_serving.actors.admission.conversation import chat_text, check_tools, template_arguments
from mlx_serving.actors.errors import ConfigurationInvalid, InvalidParameter, UnsupportedParameter
from mlx_serving.actors.messages.admission import GenerationRequested
from mlx_serving.actors.messages.values import ChatMessage, Guidance, Tool, ToolCall, ToolUse
from mlx_serving.actors.models.chat_template import ChatTemplate
from mlx_serving.actors.models.tokenizer import TextTokenizer
from mlx_serving.config.schema import Models

TOOL = Tool("weather", '{"type": "object", "properties": {"city": {"type": "string"}}}', "Weather of a city")
SHOWN = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
TURNS = (
    ChatMessage("user", "hi"),
    ChatMessage("assistant", "", tool_calls=(ToolCall("weather", '{"city": "Köln"}', "call_1"),), reasoning="so"),
    ChatMessage("tool", "rain", tool_call_id="call_1"),
)
HERMES = (
    "{{ tools | tojson }}<tool_call>{% for m in messages %}{{ (m.tool_calls or []) | tojson }}{{ m.name }}{% endfor %}"
)
TEXTS = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ '' + c.function.arguments }}{% endfor %}{% endfor %}"
)


def tokenizer(template: str) -> TextTokenizer:
    return TextTokenizer(byte_tokenizer(), ChatTemplate({"default": template}), {}, frozenset([256]), frozenset([256]))


def asked(**more: Any) -> GenerationRequested:
    return GenerationRequested(1, messages=TURNS, **more)


def using(*tools: Tool, **more: Any) -> GenerationRequested:
    return asked(tool_use=ToolUse(tools, **more))


def arguments(template: str, request: GenerationRequested) -> Mapping[str, Any]:
    return attrs.asdict(template_arguments(ChatTemplate({"default": template}), request))


def test_a_template_gets_tools_calls_and_answers_in_its_own_terms() -> None:
    words = tokenizer(HERMES)
    text = chat_text(words, TURNS, True, template_arguments(words.chat, using(TOOL)))
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
    assert text.startswith(json.dumps([SHOWN]))
    assert json.dumps([call], ensure_ascii=False) in text
    assert text.endswith("weather"), "a tool's answer is given the name of what was called"


def test_a_template_that_writes_arguments_as_they_are_gets_their_text() -> None:
    assert tokenizer(TEXTS).chat.wants_argument_text
    assert not tokenizer(HERMES).chat.wants_argument_text
    assert chat_text(tokenizer(TEXTS), TURNS) == '{"city": "Köln"}'


def test_reasoning_of_earlier_turns_reaches_the_template() -> None:
    assert chat_text(tokenizer("{{ messages[1].reasoning_content }}"), TURNS) == "so"


def test_without_a_choice_of_tools_the_template_sees_none() -> None:
    assert arguments(HERMES, using(TOOL, mode="none")) == {"tools": None, "variables": {}}


@pytest.mark.parametrize(
    ("template", "request_", "field"),
    [
        ("{{ messages }}", using(TOOL), "tools"),
        ("{{ enable_thinking }}", asked(template_arguments='{"think": true}'), "chat_template_kwargs.think"),
        ("{{ tools }}", asked(template_arguments='{"tools": []}'), "chat_template_kwargs.tools"),
        ("{{ messages }}", asked(reasoning_effort="low"), "reasoning_effort"),
    ],
)
def test_what_a_template_has_no_use_for_is_refused_by_name(
    template: str, request_: GenerationRequested, field: str
) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        arguments(template, request_)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("template", "effort", "variables"),
    [
        ("{{ reasoning_effort }}", "low", {"reasoning_effort": "low"}),
        ("{{ enable_thinking }}", "none", {"enable_thinking": False}),
        ("{{ thinking }}", "high", {"thinking": True}),
        ("{{ messages }}", "none", {}),
    ],
)
def test_degrees_of_reasoning_are_told_as_the_template_reads_them(
    template: str, effort: str, variables: dict[str, Any]
) -> None:
    assert arguments(template, asked(reasoning_effort=effort))["variables"] == variables


@pytest.mark.parametrize(
    ("use", "field"),
    [
        (ToolUse((TOOL, TOOL)), "tools[1].function.name"),
        (ToolUse((TOOL,), "named", "wether"), "tool_choice.function.name"),
        (ToolUse((), "required"), "tool_choice"),
        (ToolUse((Tool("f", '{"type": "string"}'),)), "tools[0].function.parameters"),
        (ToolUse((Tool("f", "[]"),)), "tools[0].function.parameters"),
        (ToolUse((Tool("f", '{"properties": []}'),)), "tools[0].function.parameters.properties"),
        (ToolUse((Tool("f", '{"required": "a"}'),)), "tools[0].function.parameters.required"),
    ],
)
def test_what_is_wrong_with_tools_is_named(use: ToolUse, field: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        check_tools(use)
    assert caught.value.field == field


def test_the_format_of_an_answer_follows_template_settings_and_prompt() -> None:
    words = tokenizer(HERMES + "</think>")
    choice = ParserChoice.of(words, "m", Models())
    assert choice == ParserChoice("think", "hermes")
    assert ParserChoice.of(words, "m", Models(tool_parser=("m=mistral",), reasoning_parser=("off",))) == ParserChoice(
        "", "mistral"
    )
    form = answer_format(using(TOOL), choice, "x<think>\n")
    assert form is not None
    assert (form.reasoning, form.calls, form.is_thinking, form.lazy) == ("think", "hermes", True, True)
    form = answer_format(asked(thinking_budget=4), choice, "x")
    assert form is not None
    assert (form.calls, form.is_thinking, form.thinking_budget) == ("", False, 4)
    assert answer_format(asked(), ParserChoice("", ""), "x") is None


def test_what_the_model_has_no_notation_for_is_refused_by_name() -> None:
    for request, field in ((using(TOOL), "tools"), (asked(thinking_budget=4), "thinking_budget")):
        with pytest.raises(UnsupportedParameter) as caught:
            answer_format(request, ParserChoice("", ""), "x")
        assert caught.value.field == field


def test_a_setting_that_names_no_parser_is_refused() -> None:
    check_parsers(Models(tool_parser=("a=hermes", "off"), reasoning_parser=("think",)))
    with pytest.raises(ConfigurationInvalid, match="tool_parser"):
        check_parsers(Models(tool_parser=("a=hermse",)))


def guidance(request: GenerationRequested) -> Guidance:
    form = answer_format(request, ParserChoice("", "hermes"), "x")
    assert form is not None
    return tool_guidance(request, form, tokenizer(HERMES))


def test_a_named_function_is_the_only_one_in_the_grammar() -> None:
    other = attrs.evolve(TOOL, name="other")
    assert "other" not in guidance(using(TOOL, other, mode="named", name="weather")).source
    assert "other" in guidance(using(TOOL, other)).source


def test_a_json_answer_may_stand_in_the_place_of_calls() -> None:
    request = attrs.evolve(using(TOOL), guidance=Guidance("json_schema", '{"type": "integer"}'))
    assert '"integer"' in guidance(request).source
    with pytest.raises(UnsupportedParameter, match="beside tools"):
        guidance(attrs.evolve(using(TOOL), guidance=Guidance("regex", "a+")))


def test_a_strict_schema_that_cannot_be_enforced_is_refused_with_its_keyword() -> None:
    schema = '{"type": "object", "properties": {"a": {"propertyNames": {"pattern": "b"}}}}'
    with pytest.raises(InvalidParameter, match="propertyNames") as caught:
        guidance(using(TOOL, Tool("g", schema, strict=True)))
    assert caught.value.field == "tools[1].function.parameters"
    assert "lenient" in guidance(using(Tool("g", schema))).source
