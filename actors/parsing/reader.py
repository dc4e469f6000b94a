"""Text that arrives in pieces, read by a parser that is written as if it had all of it.

A parser is a generator over a `Reader`: it yields where it needs more text and goes on when there is more. It may
look only at text that no further piece can change, so the way the text was cut never shows in what it finds.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from mlx_serving.actors.parsing.parts import Part, PartKind

Result = TypeVar("Result")
Reading = Generator[None, None, Result]
"""A piece of a parser: run it with `yield from`."""

SPACE = " \t\r\n"


class Reader:
    """The text not yet taken, and what was found so far."""

    def __init__(self) -> None:
        self.text = ""
        self.ended = False
        self.parts: list[Part] = []
        self.is_thinking = False
        """Whether the text that comes next is reasoning."""
        self._raw: list[str] | None = None

    # --- found --------------------------------------------------------------------------------------------------

    def give(self, kind: PartKind, text: str) -> None:
        if text:
            self.parts.append(Part(kind, text))

    def give_call(self, name: str, call_id: str = "") -> None:
        """Begin a call; an attempt has succeeded with it."""
        self._raw = None
        self.parts.append(Part("call", name, call_id))

    def giver(self, kind: PartKind) -> Callable[[str], None]:
        """`give` for one kind."""
        return lambda text: self.give(kind, text)

    # --- attempts -----------------------------------------------------------------------------------------------

    def attempt(self, begun: str) -> None:
        """A call may have begun with `begun`, which was taken: until it is given, it may turn out to be none."""
        self._raw = [begun]

    def fail(self) -> None:
        """It is none: everything since `attempt` is content."""
        raw, self._raw = self._raw, None
        if raw is not None:
            self.give("content", "".join(raw))

    def drop(self) -> None:
        """What was taken since `attempt` means nothing."""
        self._raw = None

    def put_back(self) -> None:
        """What was taken since `attempt` is to be read again."""
        raw, self._raw = self._raw, None
        self.text = "".join(raw or ()) + self.text

    # --- taking -------------------------------------------------------------------------------------------------

    def take(self, count: int) -> str:
        """The next characters, which must be there."""
        taken, self.text = self.text[:count], self.text[count:]
        if self._raw is not None:
            self._raw.append(taken)
        return taken

    def peek(self) -> Reading[str]:
        """The next character, not taken; empty at the end."""
        while not self.text and not self.ended:
            yield
        return self.text[:1]

    def skip_space(self) -> Reading[str]:
        """Take white space; returns it."""
        skipped = ""
        while True:
            rest = self.text.lstrip(SPACE)
            skipped += self.take(len(self.text) - len(rest))
            if rest or self.ended:
                return skipped
            yield

    def accept(self, options: Sequence[str]) -> Reading[str]:
        """Take the longest of `options` that the text begins with; empty if it begins with none."""
        while not self.ended and any(
            len(option) > len(self.text) and option.startswith(self.text) for option in options
        ):
            yield
        found = max((option for option in options if self.text.startswith(option)), key=len, default="")
        return self.take(len(found))

    def until(self, markers: Sequence[str], give: Callable[[str], None]) -> Reading[str]:
        """Hand text to `give` up to the first of `markers`, and take that; empty if the text ends without one.

        Held back is only what may be the beginning of a marker.
        """
        while True:
            at, marker = _first(self.text, markers)
            safe = len(self.text) if self.ended else _safe(self.text, markers)
            if marker and (self.ended or safe > at):
                self._pass(at, give)
                return self.take(len(marker))
            self._pass(safe, give)
            if self.ended:
                return ""
            yield

    def collect(self, markers: Sequence[str]) -> Reading[tuple[str, str]]:
        """The text before the first of `markers`, and the marker, both taken."""
        found: list[str] = []
        marker = yield from self.until(markers, found.append)
        return "".join(found), marker

    def _pass(self, count: int, give: Callable[[str], None]) -> None:
        if count:
            give(self.take(count))


def _first(text: str, markers: Sequence[str]) -> tuple[int, str]:
    """Where the first marker begins, and the longest that begins there; the text's length and "" without one."""
    best, found = len(text), ""
    for marker in markers:
        at = text.find(marker)
        if at >= 0 and (at < best or (at == best and len(marker) > len(found))):
            best, found = at, marker
    return best, found


def _safe(text: str, markers: Sequence[str]) -> int:
    """Characters before the first place at which the text may end in the beginning of a marker."""
    longest = max(map(len, markers), default=1) - 1
    for at in range(max(0, len(text) - longest), len(text)):
        rest = text[at:]
        if any(len(marker) > len(rest) and marker.startswith(rest) for marker in markers):
            return at
    return len(text)


class Parser:
    """Feeds a generator. `finish` once, after the last piece."""

    def __init__(self, read: Callable[[Reader], Reading[None]]) -> None:
        self.reader = Reader()
        self._steps = read(self.reader)
        self._is_over = False

    def feed(self, text: str) -> list[Part]:
        """What this piece of text adds."""
        self.reader.text += text
        return self._advance()

    def finish(self) -> list[Part]:
        """What was held back, now that no text follows."""
        self.reader.ended = True
        return self._advance()

    def _advance(self) -> list[Part]:
        if not self._is_over:
            self._is_over = next(self._steps, self) is self
        if self._is_over:
            self.reader.give("content", self.reader.take(len(self.reader.text)))
        found, self.reader.parts = self.reader.parts, []
        return found
