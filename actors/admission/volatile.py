"""Lines that a client changes at every turn, taken off the front of a conversation before it is rendered. Pure.

A prefix cache compares from the first token on, so one changing value at the top of the system prompt makes every turn
new. Only what the patterns match at the very start of a conversation's first system message goes, with the rest of an
otherwise empty line; a message that had nothing else goes with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import attrs

from mlx_serving.actors.errors import ConfigurationInvalid
from mlx_serving.actors.messages.values import ChatMessage

_END_OF_LINE = re.compile(r"[ \t]*(?:\r?\n)*")
MOST_LINES = 16
"""Lines taken off one message: a pattern that matches nothing at all must not go on for ever."""


class VolatileLines:
    """The patterns of the setting `admission.volatile_lines`."""

    def __init__(self, patterns: Iterable[str]) -> None:
        """Raises ConfigurationInvalid for a pattern that is no regular expression."""
        self._patterns = tuple(_compiled(pattern) for pattern in patterns)

    def strip(self, messages: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
        """The conversation without them; the same object when there is nothing to take off."""
        if not messages or messages[0].role != "system":
            return messages
        first, *others = messages
        content = self._stripped(first.content)
        if content == first.content:
            return messages
        return (attrs.evolve(first, content=content), *others) if content else tuple(others)

    def _stripped(self, text: str) -> str:
        for _ in range(MOST_LINES):
            end = max((found.end() for pattern in self._patterns if (found := pattern.match(text))), default=0)
            if not end:
                return text
            line_end = _END_OF_LINE.match(text, end)
            text = text[line_end.end() if line_end else end :]
        return text


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigurationInvalid(
            f"admission.volatile_lines: {pattern!r} is not a regular expression ({error})",
            field="admission.volatile_lines",
        ) from None
