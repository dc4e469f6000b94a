"""Every family's calls are found whatever the pieces they come in, and what is no call stays content."""

from __future__ import annotations

import itertools

# ruff: noqa: RUF001 - DeepSeek's markers have full-width bars
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.actors.messages.values import AnswerFormat, Tool
from mlx_serving.actors.parsing.formats import CALLS
from mlx_serving.actors.parsing.output import OutputParser
from mlx_serving.actors.parsing.parts import Part, merged

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "unit": {"enum": ["c", "f"]},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["city", "unit"],
}
TOOLS = (Tool("get_weather", json.dumps(WEATHER)), Tool("now", '{"type": "object", "properties": {}}'))
ARGUMENTS = '{"city": "Köln \\"x\\"", "days": 3, "unit": "c", "tags": ["a", "b"]}'
WORDS = 'Köln "x"'

EXAMPLES = {
    "hermes": (
        f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    ),
    "qwen3_coder": (
        f"<tool_call>\n<function=get_weather>\n<parameter=city>\n{WORDS}\n</parameter>\n<parameter=days>\n3\n"
        '</parameter>\n<parameter=unit>\nc\n</parameter>\n<parameter=tags>\n["a", "b"]\n</parameter>\n</function>\n'
        "</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>"
    ),
    "glm": (
        f"<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>{WORDS}</arg_value>\n<arg_key>days</arg_key>\n"
        "<arg_value>3</arg_value>\n<arg_key>unit</arg_key>\n<arg_value>c</arg_value>\n<arg_key>tags</arg_key>\n"
        '<arg_value>["a", "b"]</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>'
    ),
    "llama3_json": f'{{"name": "get_weather", "parameters": {ARGUMENTS}}}; {{"name": "now", "parameters": {{}}}}',
    "mistral": (
        f'[TOOL_CALLS][{{"name": "get_weather", "arguments": {ARGUMENTS}}}, {{"name": "now", "arguments": {{}}}}]'
    ),
    "deepseek": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        f"{ARGUMENTS}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n"
        "{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    ),
    "deepseek_v31": (
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{ARGUMENTS}<｜tool▁call▁end｜>"
        "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    ),
    "kimi_k2": (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        f"{ARGUMENTS}<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{{}}"
        "<|tool_call_end|><|tool_calls_section_end|>"
    ),
    "function_gemma": (
        f"<start_function_call>call:get_weather{{city:<escape>{WORDS}<escape>,days:3,unit:<escape>c<escape>,"
        "tags:[<escape>a<escape>,<escape>b<escape>]}<end_function_call><start_function_call>call:now{}"
        "<end_function_call>"
    ),
    "gemma4": (
        f'<|tool_call>call:get_weather{{city:<|"|>{WORDS}<|"|>,days:3,unit:<|"|>c<|"|>,tags:[<|"|>a<|"|>,<|"|>b<|"|>]}}'
        "<tool_call|><|tool_call>call:now{}<tool_call|>"
    ),
    "harmony": (
        f"<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{ARGUMENTS}<|call|><|start|>"
        "assistant to=functions.now<|channel|>commentary json<|message|>{}<|call|>"
    ),
}
HEADED_MISTRAL = f"[TOOL_CALLS]get_weather[ARGS]{ARGUMENTS}[TOOL_CALLS]now[CALL_ID]abc123456[ARGS]{{}}"

MALFORMED = {
    "hermes": [
        "<tool_call>\nno object\n</tool_call>",
        '<tool_call>{"name": 3}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "now"',
        "<tool_call>[]</tool_call>",
        "<tool_",
    ],
    "qwen3_coder": ["<tool_call>\n{}</tool_call>", "<function=<b>", "<tool_call>\n<function="],
    "glm": ["<tool_call>two\nlines</tool_call>", '<tool_call>{"name": "x"}</tool_call>', "<tool_call>now"],
    "llama3_json": [
        '{"name": "unknown", "parameters": {}}',
        '{"name": "now"}',
        '{"a": 1}',
        "<|python_tag|>f(x)",
        '{"na',
    ],
    "mistral": ["[TOOL_CALLS]", "[TOOL_CALLS]now", '[TOOL_CALLS][{"x": 1}]', "[TOOL_CALLS]now[ARGS]text"],
    "deepseek": ["<｜tool▁calls▁begin｜>text", "<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\nx"],
    "deepseek_v31": ["<｜tool▁call▁begin｜>now<｜tool▁sep｜>text<｜tool▁call▁end｜>"],
    "kimi_k2": ["<|tool_call_begin|>functions.now:0<|tool_call_end|>"],
    "function_gemma": ["<start_function_call>now{}<end_function_call>", "<start_function_call>call:no w{}"],
    "gemma4": ["<|tool_call>text<tool_call|>"],
}


def parsed(name: str, text: str, cuts: list[int] | None = None) -> list[Part]:
    """All parts of a text that arrives in pieces, cut at these places."""
    parser = OutputParser(AnswerFormat(calls=name, tools=TOOLS))
    places = sorted({0, *(cut % (len(text) + 1) for cut in cuts or ()), len(text)})
    parts = [part for at, end in itertools.pairwise(places) for part in parser.feed(text[at:end])]
    return merged([*parts, *parser.finish()])


def calls_in(parts: list[Part]) -> list[tuple[str, object]]:
    """Names and decoded arguments."""
    found: list[tuple[str, object]] = []
    for part in parts:
        if part.kind == "call":
            found.append((part.text, None))
        elif part.kind == "arguments":
            found[-1] = (found[-1][0], json.loads(part.text))
    return found


def content_of(parts: list[Part]) -> str:
    return "".join(part.text for part in parts if part.kind == "content")


@pytest.mark.parametrize("name", EXAMPLES)
def test_two_calls_are_found_and_nothing_else(name: str) -> None:
    parts = parsed(name, EXAMPLES[name])
    assert calls_in(parts) == [("get_weather", json.loads(ARGUMENTS)), ("now", {})]
    assert content_of(parts) == ""


def test_every_format_has_an_example() -> None:
    assert set(EXAMPLES) == set(CALLS)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
@given(st.lists(st.integers(0, 2000), max_size=60))
def test_no_way_to_cut_the_text_changes_the_result(name: str, cuts: list[int]) -> None:
    for text in ("Let me see.\n" + EXAMPLES[name], *MALFORMED.get(name, ())):
        assert parsed(name, text, cuts) == parsed(name, text)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_one_character_at_a_time_gives_the_same(name: str) -> None:
    for text in (EXAMPLES[name], HEADED_MISTRAL, *MALFORMED.get(name, ())):
        assert parsed(name, text, list(range(len(text)))) == parsed(name, text)


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in MALFORMED.items() for text in texts])
def test_what_is_no_call_is_content_to_the_last_character(name: str, text: str) -> None:
    assert parsed(name, text) == [Part("content", text)]
    assert content_of(parsed(name, f"First. {text}")) == f"First. {text}"


@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - {"llama3_json", "harmony"}))
def test_words_before_and_after_calls_are_content(name: str) -> None:
    parts = parsed(name, f"Let me see.\n{EXAMPLES[name]}\n")
    assert content_of(parts) == "Let me see.\n"
    assert len(calls_in(parts)) == 2


@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - {"harmony"}))
@given(st.text(alphabet='ab <>{}[]"\n:/tool_call|,', max_size=60))
def test_text_without_calls_is_never_lost(name: str, text: str) -> None:
    parts = parsed(name, text, list(range(len(text))))
    if not calls_in([part for part in parts if part.kind == "call"]):
        assert content_of(parts) == text


def test_text_is_held_back_only_while_it_may_be_a_marker() -> None:
    parser = OutputParser(AnswerFormat(calls="hermes", tools=TOOLS))
    assert parser.feed("abc <tool") == [Part("content", "abc ")]
    assert parser.feed("box") == [Part("content", "<toolbox")]


def test_arguments_come_as_the_model_writes_them() -> None:
    parser = OutputParser(AnswerFormat(calls="hermes", tools=TOOLS))
    assert parser.feed('<tool_call>{"name": "now", "arguments": {"a') == [
        Part("call", "now"),
        Part("arguments", "{"),
        Part("arguments", '"'),
        Part("arguments", "a"),
    ]
    assert parser.feed("b") == [Part("arguments", "b")]


def test_hermes_may_leave_the_markers_out_at_the_start() -> None:
    text = ' {"name": "now", "arguments": {"a": 1}}'
    assert calls_in(parsed("hermes", text)) == [("now", {"a": 1})]
    assert parsed("hermes", text, list(range(len(text)))) == parsed("hermes", text)
    fenced = '```json\n{\n  "name": "now",\n  "arguments": {"a": 1}\n}\n```'
    assert parsed("hermes", fenced, list(range(len(fenced)))) == [Part("call", "now"), Part("arguments", '{"a": 1}')]
    for words in (
        "```json\n[1]\n```",
        '```\n{"name": "x"}',
        '{"name": "other", "arguments": {}}',
        f"So:{text}",
        '{"answer": 4}',
        ' {"na',
    ):
        assert parsed("hermes", words) == [Part("content", words)]


def test_mistral_may_write_the_name_before_the_arguments() -> None:
    parts = parsed("mistral", HEADED_MISTRAL)
    assert calls_in(parts) == [("get_weather", json.loads(ARGUMENTS)), ("now", {})]
    assert [part.id for part in parts if part.kind == "call"] == ["", "abc123456"]


def test_kimi_names_its_calls_itself() -> None:
    assert [part.id for part in parsed("kimi_k2", EXAMPLES["kimi_k2"]) if part.kind == "call"] == [
        "functions.get_weather:0",
        "functions.now:1",
    ]


def test_arguments_may_come_before_the_name_and_as_a_string() -> None:
    text = '<tool_call>[{"arguments": "{\\"a\\": 1}", "name": "f"}, {"name": "g"}]</tool_call>'
    assert calls_in(parsed("hermes", text)) == [("f", {"a": 1}), ("g", {})]


def test_slips_within_strings_are_mended() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": "x\ny", "re": "\\d+"}}</tool_call>'
    assert calls_in(parsed("hermes", text)) == [("f", {"a": "x\ny", "re": "\\d+"})]


def test_a_call_that_breaks_off_keeps_what_was_written() -> None:
    parts = parsed("hermes", '<tool_call>{"name": "f", "arguments": {"a": oops}</tool_call> and on')
    assert parts == [Part("call", "f"), Part("arguments", '{"a": oops}'), Part("content", " and on")]


def test_values_take_the_type_that_the_schema_declares() -> None:
    text = (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\n12\n</parameter>\n<parameter=days>\nmany\n</parameter>\n"
        "<parameter=other>\nTrue\n</parameter>\n</function>\n</tool_call>"
    )
    assert calls_in(parsed("qwen3_coder", text)) == [("get_weather", {"city": "12", "days": "many", "other": True})]
