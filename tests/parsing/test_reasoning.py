"""Reasoning is told apart from the answer, and composes with calls."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.actors.messages.values import AnswerFormat, Tool
from mlx_serving.actors.parsing.formats import call_format_of, reasoning_format_of
from mlx_serving.actors.parsing.output import OutputParser
from mlx_serving.actors.parsing.parts import Part, merged

THINK = AnswerFormat(reasoning="think")
OPENED = AnswerFormat(reasoning="think", is_thinking=True)
TOOLS = (Tool("f", "{}"),)
BOTH = AnswerFormat(reasoning="think", calls="hermes", tools=TOOLS)
HARMONY = AnswerFormat(reasoning="harmony", calls="harmony", tools=TOOLS)

CASES = [
    (THINK, "<think>\nso\n</think>\n\nYes", [("reasoning", "so"), ("content", "Yes")]),
    (THINK, "\n<think>so</think>Yes", [("reasoning", "so"), ("content", "Yes")]),
    (THINK, "Yes <think>no</think>", [("content", "Yes <think>no</think>")]),
    (THINK, " Yes", [("content", " Yes")]),
    (THINK, "<think>a\n\nb", [("reasoning", "a\n\nb")]),
    (THINK, "<think></think>", []),
    (OPENED, "so\n</think>\n\nYes", [("reasoning", "so"), ("content", "Yes")]),
    (OPENED, "<think>so</think>Yes", [("reasoning", "so"), ("content", "Yes")]),
    (AnswerFormat(reasoning="mistral"), "[THINK]so[/THINK]Yes", [("reasoning", "so"), ("content", "Yes")]),
    (
        BOTH,
        '<think>\na <tool_call> b\n</think>\n\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>',
        [("reasoning", "a <tool_call> b"), ("call", "f"), ("arguments", "{}")],
    ),
    (
        HARMONY,
        "<|channel|>analysis<|message|>so<|end|><|start|>assistant<|channel|>final<|message|>Yes",
        [("reasoning", "so"), ("content", "Yes")],
    ),
    (
        HARMONY,
        "<|channel|>analysis<|message|>so<|end|><|start|>assistant<|channel|>commentary to=functions.f "
        '<|constrain|>json<|message|>{"a": 1}<|call|>',
        [("reasoning", "so"), ("call", "f"), ("arguments", '{"a": 1}')],
    ),
    (AnswerFormat(reasoning="harmony"), "plain words", [("content", "plain words")]),
]


def parsed(form: AnswerFormat, pieces: list[str]) -> list[tuple[str, str]]:
    parser = OutputParser(form)
    parts: list[Part] = [part for piece in pieces for part in parser.feed(piece)]
    return [(part.kind, part.text) for part in merged([*parts, *parser.finish()])]


@pytest.mark.parametrize(("form", "text", "parts"), CASES)
def test_reasoning_and_answer_are_told_apart_whole_and_by_character(
    form: AnswerFormat, text: str, parts: list[tuple[str, str]]
) -> None:
    assert parsed(form, [text]) == parts
    assert parsed(form, list(text)) == parts


@given(st.sampled_from(CASES), st.data())
def test_any_pieces_give_the_same(case: tuple[AnswerFormat, str, list[tuple[str, str]]], data: st.DataObject) -> None:
    form, text, parts = case
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
    assert parsed(form, [text[a:b] for a, b in itertools.pairwise(cuts)]) == parts


def test_reasoning_streams_word_by_word() -> None:
    parser = OutputParser(OPENED)
    assert parser.feed("so it") == [Part("reasoning", "so it")]
    assert parser.feed(" is") == [Part("reasoning", " is")]
    assert parser.is_thinking
    parser.feed("</think>")
    assert not parser.is_thinking


@pytest.mark.parametrize(
    ("template", "calls", "reasoning"),
    [
        ("{{ '<tool_call>' }}{{ tool_call.name }}", "hermes", ""),
        ("<tool_call>\\n<function=x>", "qwen3_coder", ""),
        ("<tool_call> <arg_key> </think>", "glm", "think"),
        ("[TOOL_CALLS] [THINK] [/THINK]", "mistral", "mistral"),
        ("<｜tool▁calls▁begin｜> ```json <think></think>", "deepseek", "think"),  # noqa: RUF001
        ("<｜tool▁calls▁begin｜>", "deepseek_v31", ""),  # noqa: RUF001
        ('Respond in the format {"name": function name, "parameters": ', "llama3_json", ""),
        ("<|channel|>analysis<|message|>", "harmony", "harmony"),
        ("{{ messages }}", "", ""),
    ],
)
def test_the_template_tells_the_formats(template: str, calls: str, reasoning: str) -> None:
    assert (call_format_of(template), reasoning_format_of(template)) == (calls, reasoning)
