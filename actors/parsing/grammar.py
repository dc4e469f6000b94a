"""The grammar of a family's tool calls, with arguments that are valid against the tools' schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import attrs

from mlx_serving.actors.messages.values import Tool
from mlx_serving.actors.parsing import gemma_calls, harmony, headed_calls, tagged_calls
from mlx_serving.actors.parsing.argument_grammars import bare_value, gemma_object, properties_of
from mlx_serving.actors.parsing.formats import PYTHON_TAG
from mlx_serving.actors.parsing.grammar_rules import Rules, TokenOf, any_of, text

Schema = dict[str, Any]


@attrs.frozen
class CallGrammar:
    """One call, and what stands around and between several.

    With `repeats`, each call is a block of its own, so that a trigger may open every one.
    """

    call: Callable[[Rules, Tool, Schema], str]
    opening: Callable[[Rules], str] = lambda _: ""
    between: str = ""
    closing: Callable[[Rules], str] = lambda _: ""
    repeats: bool = False
    only_one: bool = False


def _object(rules: Rules, tool: Tool, schema: Schema, key: str = "arguments") -> str:
    head = f'{{"name": {json.dumps(tool.name)}, "{key}": '
    return f'{text(head)} {rules.json(schema, tool.strict)} "}}"'


def _hermes(rules: Rules, tool: Tool, schema: Schema) -> str:
    opening, closing = rules.mark(tagged_calls.CALL), rules.mark(tagged_calls.CALL_END)
    return f'{opening} "\\n" {_object(rules, tool, schema)} "\\n" {closing}'


def _llama(rules: Rules, tool: Tool, schema: Schema) -> str:
    return _object(rules, tool, schema, "parameters")


def _qwen3_coder(rules: Rules, tool: Tool, schema: Schema) -> str:
    properties, required = properties_of(schema)
    members = []
    for key, value in properties.items():
        end = "\n" + tagged_calls.PARAMETER_END
        rule = rules.add(
            f"{text(f'{tagged_calls.PARAMETER}{key}>' + chr(10))} "
            f"{bare_value(rules, value, schema, tool.strict, end, chr(10))}"
        )
        members.append(rule if key in required else f"{rule}?")
    opening = f"{rules.mark(tagged_calls.CALL)} {text(chr(10) + tagged_calls.FUNCTION + tool.name + '>' + chr(10))}"
    closing = f"{text(tagged_calls.FUNCTION_END + chr(10))} {rules.mark(tagged_calls.CALL_END)}"
    return " ".join([opening, *members, closing])


def _glm(rules: Rules, tool: Tool, schema: Schema) -> str:
    properties, required = properties_of(schema)
    members = []
    for key, value in properties.items():
        head = f"{rules.mark(tagged_calls.KEY)} {text(key)} {rules.mark(tagged_calls.KEY_END)} "
        head += f'"\\n" {rules.mark(tagged_calls.VALUE)}'
        rule = rules.add(f"{head} {bare_value(rules, value, schema, tool.strict, tagged_calls.VALUE_END, chr(10))}")
        members.append(rule if key in required else f"{rule}?")
    opening, closing = rules.mark(tagged_calls.CALL), rules.mark(tagged_calls.CALL_END)
    return " ".join([opening, text(tool.name + "\n"), *members, closing])


def _mistral_headed(rules: Rules, tool: Tool, schema: Schema) -> str:
    opening, _, separator = headed_calls.MISTRAL
    return f"{rules.mark(opening)} {text(tool.name)} {rules.mark(separator)} {rules.json(schema, tool.strict)}"


def _deepseek(rules: Rules, tool: Tool, schema: Schema) -> str:
    _, call, separator, end, _ = map(rules.mark, headed_calls.DEEPSEEK)
    head = f'{call} "function" {separator} {text(tool.name + chr(10) + "```json" + chr(10))}'
    return f'{head} {rules.json(schema, tool.strict)} "\\n```" {end}'


def _deepseek_v31(rules: Rules, tool: Tool, schema: Schema) -> str:
    _, call, separator, end, _ = map(rules.mark, headed_calls.DEEPSEEK)
    return f"{call} {text(tool.name)} {separator} {rules.json(schema, tool.strict)} {end}"


def _kimi(rules: Rules, tool: Tool, schema: Schema) -> str:
    _, call, separator, end, _ = map(rules.mark, headed_calls.KIMI)
    name = text(f"functions.{tool.name}:")
    return f"{call} {name} /[0-9]+/ {separator} {rules.json(schema, tool.strict)} {end}"


def _gemma(marks: tuple[str, str, str]) -> CallGrammar:
    begin, end, quote = marks

    def call(rules: Rules, tool: Tool, schema: Schema) -> str:
        name = text(f"call:{tool.name}")
        return f"{rules.mark(begin)} {name} {gemma_object(rules, schema, quote)} {rules.mark(end)}"

    return CallGrammar(call, repeats=True)


def _harmony(rules: Rules, tool: Tool, schema: Schema) -> str:
    head = f"{text(f'to=functions.{tool.name} ')} {rules.mark(harmony.CONSTRAIN)}"
    return f'{head} "json" {rules.mark(harmony.MESSAGE)} {rules.json(schema, tool.strict)}'


def _marked(marker: str, after: str = "") -> Callable[[Rules], str]:
    return lambda rules: f"{rules.mark(marker)} {text(after)}"


def _section(call: Callable[[Rules, Tool, Schema], str], markers: tuple[str, ...], between: str = "") -> CallGrammar:
    return CallGrammar(call, _marked(markers[0]), between, _marked(markers[-1]))


_MISTRAL_LIST = CallGrammar(_object, _marked(headed_calls.MISTRAL[0], "["), ", ", lambda _: '"]"')
_GRAMMARS: dict[str, CallGrammar] = {
    "hermes": CallGrammar(_hermes, between="\n", repeats=True),
    "qwen3_coder": CallGrammar(_qwen3_coder, between="\n", repeats=True),
    "glm": CallGrammar(_glm, between="\n", repeats=True),
    "llama3_json": CallGrammar(_llama, only_one=True),
    "mistral": CallGrammar(_mistral_headed, repeats=True),
    "deepseek": _section(_deepseek, headed_calls.DEEPSEEK, "\n"),
    "deepseek_v31": _section(_deepseek_v31, headed_calls.DEEPSEEK),
    "kimi_k2": _section(_kimi, headed_calls.KIMI),
    "function_gemma": _gemma(gemma_calls.FUNCTION_GEMMA),
    "gemma4": _gemma(gemma_calls.GEMMA4),
    "harmony": CallGrammar(_harmony, only_one=True),
}


def calls_grammar(
    name: str, tools: tuple[Tool, ...], token_of: TokenOf, *, lazy: bool, parallel: bool, answer: Schema | None = None
) -> str:
    """The grammar of calls of `tools` in the format `name`.

    With `lazy`, of what a trigger begins: one block. Otherwise of the whole answer: one call or, with `parallel`, any
    number; or instead a JSON value that `answer` lets in.
    """
    rules = Rules(token_of)
    form = _GRAMMARS[name]
    if name == "mistral" and token_of(headed_calls.MISTRAL[-1]) is None:
        form = _MISTRAL_LIST
    call = rules.add(any_of([form.call(rules, tool, json.loads(tool.parameters)) for tool in tools]))
    is_one = form.only_one or not parallel or (lazy and form.repeats)
    more = "" if is_one else f"({text(form.between)} {call})*"
    start = f"{_lead(name, rules, lazy)} {form.opening(rules)} {call} {more} {form.closing(rules)}"
    if lazy and name in _BARE:
        start = f"{start} | {any_of([_bare(rules, tool, _BARE[name]) for tool in tools])}"
    return rules.source(start if answer is None else f"{start} | {rules.json(answer, strict=True)}")


_BARE = {"hermes": "arguments", "llama3_json": "parameters"}
"""Formats in which a call may lack its markers, and its member for the arguments."""
_SPACE = "[ \\n]{0,40}"


def _bare(rules: Rules, tool: Tool, key: str) -> str:
    """An object in any layout, perhaps fenced."""
    schema = json.loads(tool.parameters)
    words = (re.escape(json.dumps(word)) for word in ("name", tool.name, key))
    head = _SPACE.join(["", r"\{", next(words), ":", next(words), ",", next(words), ":", ""])
    body = f"/{head}/ {rules.json(schema, tool.strict, any_layout=True)} /{_SPACE}\\}}"
    return f"({body}/ | /```(json)?/ {body}{_SPACE}```/)"


def _lead(name: str, rules: Rules, lazy: bool) -> str:
    """What stands before the first call of an answer."""
    if name == "harmony" and not lazy:
        message = f'{rules.mark(harmony.CHANNEL)} "analysis" {rules.mark(harmony.MESSAGE)}'
        reasoning = f'{message} {rules.until(harmony.ENDS[0])} {rules.mark(harmony.START)} "assistant"'
        return f'({reasoning})? {rules.mark(harmony.CHANNEL)} "commentary "'
    if name == "llama3_json" and lazy:
        return f"({rules.mark(PYTHON_TAG)})?"
    return ""
