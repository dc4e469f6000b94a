"""One answer's text taken apart: reasoning first, then content with tool calls in it."""

from __future__ import annotations

import secrets
import string

from mlx_serving.actors.messages.values import AnswerFormat
from mlx_serving.actors.parsing.formats import CALLS, REASONING
from mlx_serving.actors.parsing.harmony import harmony
from mlx_serving.actors.parsing.parts import Part
from mlx_serving.actors.parsing.reader import Parser
from mlx_serving.actors.parsing.thinking import Thinking

_ID_CHARACTERS = string.ascii_letters + string.digits
_ID_LENGTH = 24


class OutputParser:
    """Raises KeyError for a format that does not exist."""

    def __init__(self, form: AnswerFormat) -> None:
        is_harmony = "harmony" in (form.reasoning, form.calls)
        self._reasoning = Parser(harmony) if is_harmony else _reasoning(form)
        self._calls = Parser(CALLS[form.calls].read(form.tools)) if form.calls and not is_harmony else None

    @property
    def is_thinking(self) -> bool:
        """Whether the text that comes next is reasoning."""
        return self._reasoning is not None and self._reasoning.reader.is_thinking

    def feed(self, text: str) -> list[Part]:
        """What this piece of text adds, in order."""
        if self._reasoning is None:
            return self._in_content(text)
        return self._split(self._reasoning.feed(text))

    def finish(self) -> list[Part]:
        """What was held back, now that no text follows."""
        parts = [] if self._reasoning is None else self._split(self._reasoning.finish())
        return parts if self._calls is None else [*parts, *self._calls.finish()]

    def _split(self, parts: list[Part]) -> list[Part]:
        if self._calls is None:
            return parts
        found: list[Part] = []
        for part in parts:
            found += self._in_content(part.text) if part.kind == "content" else [part]
        return found

    def _in_content(self, text: str) -> list[Part]:
        return [Part("content", text)] if self._calls is None else self._calls.feed(text)


def _reasoning(form: AnswerFormat) -> Parser | None:
    if not form.reasoning:
        return None
    span = REASONING[form.reasoning]
    return Parser(Thinking(span.open, span.close, form.is_thinking).read)


def markers_of(form: AnswerFormat) -> frozenset[str]:
    """What the parser must see even where the tokenizer holds it for special."""
    calls = CALLS[form.calls].markers if form.calls else ()
    if form.reasoning == "harmony":
        return frozenset((*calls, *CALLS["harmony"].markers))
    span = REASONING[form.reasoning] if form.reasoning else None
    return frozenset((*calls, *((span.open, span.close) if span is not None else ())))


def new_call_id(form: AnswerFormat) -> str:
    """An id for a call that the model gave none, such as the family's templates take back."""
    length = CALLS[form.calls].id_length if form.calls else 0
    characters = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(length or _ID_LENGTH))
    return characters if length else f"call_{characters}"
