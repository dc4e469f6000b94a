"""Calls of a header with the function's name and then its arguments as one JSON object.

DeepSeek and Kimi frame them with markers of their own, Mistral writes the name straight after its marker.
"""

# ruff: noqa: RUF001 - DeepSeek's markers have full-width bars
from __future__ import annotations

from mlx_serving.actors.parsing import json_calls, json_text
from mlx_serving.actors.parsing.blocks import blocks
from mlx_serving.actors.parsing.reader import Reader, Reading

DEEPSEEK = (
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
)
KIMI = (
    "<|tool_calls_section_begin|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
    "<|tool_calls_section_end|>",
)
MISTRAL = ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")
_FENCE = "```"


def deepseek(reader: Reader) -> Reading[None]:
    """`function⟨sep⟩name`, a line break and fenced JSON (V3, R1), or `name⟨sep⟩` and JSON (V3.1 and later)."""
    begin, call, separator, end, section_end = DEEPSEEK

    def block(reader: Reader, opening: str) -> Reading[bool]:
        yield from _into(reader, opening, begin, call)
        header, marker = yield from reader.collect([separator, end, section_end])
        name = header.strip()
        if marker == separator and name == "function":
            line, _ = yield from reader.collect(["\n", "{"])
            name = line.strip()
            yield from _skip_fence(reader)
        return (yield from _arguments(reader, name if marker == separator else "", "", end))

    yield from blocks(reader, [begin, call], block, stray=[section_end])


def kimi(reader: Reader) -> Reading[None]:
    """`functions.name:0`, which is the call's id as well, a marker and JSON."""
    begin, call, separator, end, section_end = KIMI

    def block(reader: Reader, opening: str) -> Reading[bool]:
        yield from _into(reader, opening, begin, call)
        header, marker = yield from reader.collect([separator, end, section_end])
        call_id = header.strip() if marker == separator else ""
        name = call_id.removeprefix("functions.").rpartition(":")[0]
        return (yield from _arguments(reader, name, call_id, end))

    yield from blocks(reader, [begin, call], block, stray=[section_end])


def mistral(reader: Reader) -> Reading[None]:
    """A list of objects, or `name[ARGS]{…}` with `[CALL_ID]…` before `[ARGS]` in some models."""
    opening, with_id, separator = MISTRAL

    def block(reader: Reader, _: str) -> Reading[bool]:
        yield from reader.skip_space()
        if (yield from reader.peek()) in ("[", "{") and reader.text:
            return (yield from json_calls.calls(reader, ""))
        name, marker = yield from _name(reader)
        call_id = ""
        if marker == with_id:
            call_id, marker = yield from reader.collect([separator])
        return (yield from _arguments(reader, name if marker != opening else "", call_id.strip(), ""))

    yield from blocks(reader, [opening], block)


def _into(reader: Reader, opening: str, begin: str, call: str) -> Reading[None]:
    """From the beginning of a section to its first call."""
    if opening == begin:
        yield from reader.skip_space()
        yield from reader.accept([call])


def _name(reader: Reader) -> Reading[tuple[str, str]]:
    """Up to one of the markers, or to the brace of the arguments, which is left."""
    found: list[str] = []
    opening, with_id, separator = MISTRAL
    while True:
        char = yield from reader.peek()
        if not char or char == "{":
            return "".join(found).strip(), char
        marker = yield from reader.accept([opening, with_id, separator])
        if marker:
            return "".join(found).strip(), marker
        found.append(reader.take(1))


def _skip_fence(reader: Reader) -> Reading[None]:
    yield from reader.skip_space()
    if (yield from reader.accept([_FENCE + "json", _FENCE])):
        yield from reader.skip_space()


def _arguments(reader: Reader, name: str, call_id: str, end: str) -> Reading[bool]:
    """The call, if there is a name and an object begins; then what is left up to `end`, but for a closing fence."""
    yield from reader.skip_space()
    if not name or (yield from reader.peek()) != "{":
        reader.fail()
        return False
    reader.give_call(name, call_id)
    give = reader.giver("arguments")
    is_complete = yield from json_text.value(reader, give)
    if not end:
        return True
    if is_complete:
        yield from _skip_fence(reader)
        give = reader.giver("content")
    yield from reader.until([end], give)
    return True
