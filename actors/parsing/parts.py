"""What a parser finds in an answer, piece by piece."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import attrs

PartKind = Literal["content", "reasoning", "call", "arguments"]


@attrs.frozen
class Part:
    """A piece of one kind. `call` begins a call: its text is the name of the function, `id` what the model calls it.

    `arguments` continues the call begun last, with JSON text.
    """

    kind: PartKind
    text: str
    id: str = ""


def merged(parts: Iterable[Part]) -> list[Part]:
    """The same with neighbours of one kind joined, however the text had been cut."""
    joined: list[Part] = []
    for part in parts:
        if joined and part.kind != "call" and joined[-1].kind == part.kind:
            joined[-1] = attrs.evolve(part, text=joined[-1].text + part.text)
        else:
            joined.append(part)
    return joined
