"""A JSON value in a text that is still arriving: handed on as it comes, up to its end."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from mlx_serving.actors.parsing.reader import Reader, Reading

Give = Callable[[str], None]

_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_SCALAR = re.compile(r"[-+.0-9A-Za-z]*")
_WHOLE_SCALAR = re.compile(r"true|false|null|-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_LONGEST_SCALAR = 400
_UNICODE = re.compile(r"\\u[0-9a-fA-F]{4}")
_CLOSING = {"{": "}", "[": "]"}


def value(reader: Reader, give: Give) -> Reading[bool]:
    """Take one value and hand its text on; False where it breaks off or is no JSON, with what came before given.

    White space before it is dropped. Two slips of models are mended, so that the value is JSON all the same: control
    characters in a string, and backslashes that escape nothing.
    """
    yield from reader.skip_space()
    closing: list[str] = []
    state = "value"
    while True:
        following = yield from _step(reader, give, closing, state)
        if following == "after" and not closing:
            return True
        if not following:
            return False
        state = following
        give((yield from reader.skip_space()))


def _step(reader: Reader, give: Give, closing: list[str], state: str) -> Reading[str]:
    """One token. What may follow: `value` or `key`, either or the end (`value?`, `key?`), what is `after` a value."""
    char = yield from reader.peek()
    if closing and char == closing[-1] and state in ("after", "value?", "key?"):
        give(reader.take(1))
        closing.pop()
        return "after"
    if state == "after":
        if char != ",":
            return ""
        give(reader.take(1))
        return "key" if closing[-1] == "}" else "value"
    if state.startswith("key"):
        return "value" if (yield from _key(reader, give)) else ""
    if char and char in _CLOSING:
        give(reader.take(1))
        closing.append(_CLOSING[char])
        return "key?" if char == "{" else "value?"
    read = _string if char == '"' else _scalar
    return "after" if (yield from read(reader, give)) else ""


def _key(reader: Reader, give: Give) -> Reading[bool]:
    if (yield from reader.peek()) != '"' or not (yield from _string(reader, give)):
        return False
    give((yield from reader.skip_space()))
    if (yield from reader.peek()) != ":":
        return False
    give(reader.take(1))
    return True


def _string(reader: Reader, give: Give) -> Reading[bool]:
    give(reader.take(1))
    while True:
        plain = _PLAIN.match(reader.text)
        if plain is not None and plain.end():
            give(reader.take(plain.end()))
        char = yield from reader.peek()
        if not char:
            return False
        if char == '"':
            give(reader.take(1))
            return True
        if char == "\\":
            yield from _escape(reader, give)
        elif char < " ":
            give(json.dumps(reader.take(1))[1:-1])


def _escape(reader: Reader, give: Give) -> Reading[None]:
    while len(reader.text) < (6 if reader.text[1:2] == "u" else 2) and not reader.ended:
        yield
    if _UNICODE.match(reader.text):
        give(reader.take(6))
    elif reader.text[1:2] and reader.text[1] in '"\\/bfnrt':
        give(reader.take(2))
    else:
        reader.take(1)
        give("\\\\")


def _scalar(reader: Reader, give: Give) -> Reading[bool]:
    """A number or a literal. Nothing else in JSON runs on without a delimiter, so it is held back."""
    while True:
        found = _SCALAR.match(reader.text)
        end = found.end() if found is not None else 0
        if end < len(reader.text) or reader.ended or end > _LONGEST_SCALAR:
            break
        yield
    if end > _LONGEST_SCALAR or not _WHOLE_SCALAR.fullmatch(reader.text[:end]):
        return False
    give(reader.take(end))
    return True


def whole(reader: Reader) -> Reading[str | None]:
    """The text of one value, all of it; None where it breaks off or is no JSON."""
    text: list[str] = []
    is_complete = yield from value(reader, text.append)
    return "".join(text) if is_complete else None


def string(reader: Reader) -> Reading[str | None]:
    """The characters of a string; None if there is no string."""
    yield from reader.skip_space()
    if (yield from reader.peek()) != '"':
        return None
    text = yield from whole(reader)
    return None if text is None else str(json.loads(text))
