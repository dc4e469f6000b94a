"""Calls whose arguments stand one by one between tags, as bare text: Qwen3-Coder and GLM."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import attrs

from mlx_serving.actors.messages.values import Tool
from mlx_serving.actors.parsing.blocks import blocks
from mlx_serving.actors.parsing.reader import Reader, Reading
from mlx_serving.actors.parsing.typed_values import as_json, is_text, properties_of

CALL, CALL_END = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
KEY, KEY_END, VALUE, VALUE_END = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"


@attrs.define
class Arguments:
    """Gives arguments as members of one JSON object. `properties` are their schemas."""

    reader: Reader
    properties: dict[str, Any]
    _has_any: bool = False

    def member(self, name: str, ends: Sequence[str]) -> Reading[str]:
        """Take the value of `name` up to one of `ends`, which is returned. A string is given as it comes."""
        give = self.reader.giver("arguments")
        give(", " if self._has_any else "{")
        self._has_any = True
        give(json.dumps(name, ensure_ascii=False) + ": ")
        schema = self.properties.get(name)
        if not is_text(schema):
            text, end = yield from self.reader.collect(ends)
            give(as_json(text, schema))
            return end
        give('"')
        end = yield from self.reader.until(ends, lambda text: give(json.dumps(text, ensure_ascii=False)[1:-1]))
        give('"')
        return end

    def close(self) -> None:
        self.reader.give("arguments", "}" if self._has_any else "{}")


@attrs.frozen
class Qwen3Coder:
    """`<function=name>` and `<parameter=key>`, a line break, the value, a line break, `</parameter>`."""

    tools: tuple[Tool, ...] = ()

    def read(self, reader: Reader) -> Reading[None]:
        properties = properties_of(self.tools)

        def block(reader: Reader, marker: str) -> Reading[bool]:
            if marker == CALL:
                yield from reader.skip_space()
                if not (yield from reader.accept([FUNCTION])):
                    reader.fail()
                    return False
            name, end = yield from reader.collect([">", "<"])
            if end != ">" or not name.strip():
                reader.fail()
                return False
            reader.give_call(name.strip())
            yield from _parameters(Arguments(reader, properties.get(name.strip(), {})))
            return True

        yield from blocks(reader, [CALL, FUNCTION], block, stray=[CALL_END])


def _parameters(arguments: Arguments) -> Reading[None]:
    reader = arguments.reader
    while True:
        yield from reader.skip_space()
        if not (yield from reader.accept([PARAMETER])):
            break
        key, _ = yield from reader.collect([">"])
        yield from reader.accept(["\n"])
        yield from arguments.member(key.strip(), ["\n" + PARAMETER_END, PARAMETER_END])
    arguments.close()
    yield from reader.accept([FUNCTION_END])


@attrs.frozen
class Glm:
    """The name, then `<arg_key>` and `<arg_value>` by turns, with or without line breaks between them."""

    tools: tuple[Tool, ...] = ()

    def read(self, reader: Reader) -> Reading[None]:
        properties = properties_of(self.tools)

        def block(reader: Reader, _: str) -> Reading[bool]:
            header, marker = yield from reader.collect([KEY, CALL_END])
            name = header.strip()
            if not marker or not name or any(char in name for char in "\n{<"):
                reader.fail()
                return False
            reader.give_call(name)
            arguments = Arguments(reader, properties.get(name, {}))
            while marker == KEY:
                key, _ = yield from reader.collect([KEY_END])
                yield from reader.skip_space()
                yield from reader.accept([VALUE])
                yield from arguments.member(key.strip(), [VALUE_END])
                yield from reader.skip_space()
                marker = yield from reader.accept([KEY, CALL_END])
            arguments.close()
            return True

        yield from blocks(reader, [CALL], block, stray=[CALL_END])
