"""Writing a grammar in llguidance's dialect of Lark, rule by rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import attrs

TokenOf = Callable[[str], int | None]
"""The id of a marker that is a token of its own; None for one that is written with several."""

_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_ANYTHING = "/(?s:.*)/"


@attrs.define
class Rules:
    """Rules under names of their own. Methods return what stands for them in the body of another rule."""

    token_of: TokenOf
    lines: list[str] = attrs.field(factory=list)

    def add(self, body: str, options: str = "") -> str:
        """A rule with this body."""
        name = f"r{len(self.lines)}"
        self.lines.append(f"{name}{options}: {body}")
        return name

    def mark(self, marker: str) -> str:
        """A marker, whether one token or text."""
        token = self.token_of(marker)
        return text(marker) if token is None else f"<[{token}]>"

    def json(self, schema: dict[str, Any], strict: bool, any_layout: bool = False) -> str:
        """Values of a schema, with a blank after commas and colons and no other white space, as templates write it.

        What the schema has beyond what can be enforced is an error where it is `strict`, and else left out. With
        `any_layout`, white space may be anywhere.
        """
        options = {**({} if any_layout else _LAYOUT), "lenient": not strict}
        return self.add("%json " + json.dumps({**schema, "x-guidance": options}))

    def until(self, marker: str, after: str = "") -> str:
        """Any text up to a marker, the marker, and a text that follows it."""
        if self.token_of(marker) is not None:
            return f"{_ANYTHING} {self.mark(marker)} {text(after)}"
        return self.add(_ANYTHING, f"[suffix={json.dumps(marker + after)}]")

    def source(self, start: str) -> str:
        """The grammar, which begins with `start`."""
        return "\n".join([f"start: {start}", *self.lines, ""])


def text(characters: str) -> str:
    """These characters; nothing for none."""
    return json.dumps(characters) if characters else ""


def any_of(options: list[str]) -> str:
    return f"({' | '.join(options)})"
