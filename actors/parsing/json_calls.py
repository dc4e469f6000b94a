"""Calls written as JSON objects: `{"name": …, "arguments": {…}}`, one, several, or a list of them."""

from __future__ import annotations

import json
from typing import Literal

import attrs

from mlx_serving.actors.parsing import json_text
from mlx_serving.actors.parsing.reader import Reader, Reading

Outcome = Literal["call", "none", "broken", "trailing"]
"""`none`: it is no call, and nothing was given. `broken`: in its arguments. `trailing`: after its arguments."""

_ARGUMENTS = ("arguments", "parameters")
_OTHERS = ("id", "type", "description")


@attrs.define
class CallObject:
    """One object. Members may come in any order; what stands before the name waits for it.

    `names`: only these functions count, and only an object that has nothing else in it; None: whatever is called.
    """

    reader: Reader
    names: frozenset[str] | None = None
    _name: str | None = None
    _id: str = ""
    _arguments: str | None = None
    """Those that came before the name."""
    _is_given: bool = False

    def read(self) -> Reading[Outcome]:
        """The reader must be at the opening brace. Before the call is given, the attempt is not ended."""
        reader = self.reader
        reader.take(1)
        while (yield from self._member()):
            yield from reader.skip_space()
            if not (yield from reader.accept([","])):
                break
        if (yield from reader.accept(["}"])) and self._finish():
            return "call"
        if not self._is_given:
            return "none"
        return "broken" if self._arguments is None else "trailing"

    def _member(self) -> Reading[bool]:
        """False where the object ends or breaks."""
        key = yield from json_text.string(self.reader)
        yield from self.reader.skip_space()
        if key is None or not (yield from self.reader.accept([":"])):
            return False
        if key == "name":
            self._name = yield from json_text.string(self.reader)
            return self._name is not None and (self.names is None or self._name in self.names)
        if key in _ARGUMENTS:
            return (yield from self._read_arguments())
        if self.names is not None and key not in _OTHERS:
            return False
        text = yield from json_text.whole(self.reader)
        if key == "id" and text is not None and text.startswith('"'):
            self._id = str(json.loads(text))
        return text is not None

    def _read_arguments(self) -> Reading[bool]:
        yield from self.reader.skip_space()
        is_object = (yield from self.reader.peek()) == "{"
        if self._name is None or self._is_given or not is_object:
            text = yield from json_text.whole(self.reader)
            self._arguments = text if text is None else _as_object(text)
            return text is not None
        self._give()
        is_complete = yield from json_text.value(self.reader, self.reader.giver("arguments"))
        self._arguments = "" if is_complete else None
        return is_complete

    def _give(self) -> None:
        self.reader.give_call(self._name or "", self._id)
        self._is_given = True

    def _finish(self) -> bool:
        """The object is complete; without a name it is no call."""
        if self._is_given:
            return True
        if self._name is None or (self.names is not None and self._arguments is None):
            return False
        self._give()
        self.reader.give("arguments", self._arguments or "{}")
        return True


def _as_object(text: str) -> str:
    """Arguments that were written as a string that holds JSON, or as null."""
    if text.startswith('"'):
        return str(json.loads(text))
    return "{}" if text == "null" else text


def calls(reader: Reader, end: str, names: frozenset[str] | None = None) -> Reading[bool]:
    """Objects side by side or in a list, up to `end` where there is one. Whether any was a call.

    In an attempt. A call that breaks off in its arguments gets the text up to `end` as it is.
    """
    yield from reader.skip_space()
    is_list = bool((yield from reader.accept(["["])))
    found = False
    while True:
        yield from reader.skip_space()
        if (yield from reader.peek()) != "{":
            break
        outcome = yield from CallObject(reader, names).read()
        if outcome == "none":
            reader.fail()
            return found
        found = True
        if outcome != "call":
            yield from _rest(reader, end, outcome)
            return True
        reader.attempt("")
        yield from reader.skip_space()
        yield from reader.accept([",", ";"])
    if not found:
        reader.fail()
        return False
    yield from _close(reader, end, is_list)
    return True


def _rest(reader: Reader, end: str, outcome: Outcome) -> Reading[None]:
    kind: Literal["arguments", "content"] = "arguments" if outcome == "broken" else "content"
    yield from reader.until([end] if end else [], reader.giver(kind))


def _close(reader: Reader, end: str, is_list: bool) -> Reading[None]:
    """Take what ends the calls. White space and separators after the last one mean nothing."""
    if is_list:
        yield from reader.accept(["]"])
        yield from reader.skip_space()
    if end:
        yield from reader.accept([end])
    reader.drop()
