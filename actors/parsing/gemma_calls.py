"""Calls of FunctionGemma and Gemma 4: `call:name{key:value}`, strings between marks of their own, keys bare."""

from __future__ import annotations

import json
import re

import attrs

from mlx_serving.actors.parsing.blocks import blocks
from mlx_serving.actors.parsing.reader import Reader, Reading

FUNCTION_GEMMA = ("<start_function_call>", "<end_function_call>", "<escape>")
GEMMA4 = ("<|tool_call>", "<tool_call|>", '<|"|>')
_NAME = re.compile(r"[\w.-]+")
_NUMBER = re.compile(r"true|false|null|-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")


@attrs.frozen
class Gemma:
    """`marks`: what begins a call, what ends it, and what stands around a string."""

    marks: tuple[str, str, str]

    def read(self, reader: Reader) -> Reading[None]:
        begin, end, quote = self.marks

        def block(reader: Reader, _: str) -> Reading[bool]:
            yield from reader.skip_space()
            header, brace = yield from reader.collect(["{", end])
            kind, _, name = header.strip().partition(":")
            if kind != "call" or brace != "{" or not _NAME.fullmatch(name):
                reader.fail()
                return False
            reader.give_call(name)
            is_complete = yield from _members(reader, quote, end)
            yield from reader.until([end], reader.giver("content" if is_complete else "arguments"))
            return True

        yield from blocks(reader, [begin], block)


def _members(reader: Reader, quote: str, end: str) -> Reading[bool]:
    """An object, whose brace was taken, as JSON; False where it breaks."""
    give = reader.giver("arguments")
    give("{")
    closing = ["}"]
    expects_key = True
    while closing:
        yield from reader.skip_space()
        char = yield from reader.peek()
        if char == closing[-1]:
            give(reader.take(1))
            closing.pop()
            expects_key = False
        elif char == ",":
            reader.take(1)
            give(", ")
            expects_key = closing[-1] == "}"
        elif not char or (yield from reader.accept([end])):
            return False
        elif expects_key:
            key, _ = yield from reader.collect([":"])
            give(json.dumps(key.strip().removeprefix(quote).removesuffix(quote), ensure_ascii=False) + ": ")
            expects_key = False
        elif char in "{[":
            give(reader.take(1))
            closing.append("}" if char == "{" else "]")
            expects_key = char == "{"
        else:
            yield from _scalar(reader, quote)
    return True


def _scalar(reader: Reader, quote: str) -> Reading[None]:
    give = reader.giver("arguments")
    if (yield from reader.accept([quote])):
        give('"')
        yield from reader.until([quote], lambda text: give(json.dumps(text, ensure_ascii=False)[1:-1]))
        give('"')
        return
    text = ""
    while (yield from reader.peek()) not in ("", ",", "}", "]"):
        text += reader.take(1)
    text = text.strip()
    give(text if _NUMBER.fullmatch(text) else json.dumps(text, ensure_ascii=False))
