"""Where messages end in a rendered prompt: there a model whose cache cannot be cut back is checkpointed. Pure.

A conversation's next turn and another conversation with the same system prompt agree with this one up to such a
place. Templates may rewrite earlier turns when later ones come, so a place counts only if the text up to it was seen
to be the same in a second rendering.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs

from mlx_serving.actors.errors import TokenizerFailed
from mlx_serving.actors.messages.values import ChatMessage

LATEST_MESSAGES = 3
"""Ends of this many last messages are looked for; those of earlier ones were found when they were the last."""

Render = Callable[[tuple[ChatMessage, ...], bool], str]
"""Text of a conversation; with or without the words that ask for an answer."""


def message_ends(text: str, messages: Sequence[ChatMessage], render: Render) -> list[int]:
    """Ascending offsets in characters of `text`, the rendering of `messages`, in its interior.

    One is after the system prompt, the others after each of the last messages; those that the template does not let
    be told are left out.
    """
    turns = tuple(messages)
    leading = next((index for index, turn in enumerate(turns) if turn.role != "system"), len(turns))
    ends = {_system_end(text, turns, leading, render)}
    for count in range(max(leading, len(turns) - LATEST_MESSAGES) + 1, len(turns) + 1):
        start = _rendered(turns[:count], render)
        if start is not None and text.startswith(start):
            ends.add(len(start))
    return sorted(end for end in ends if 0 < end < len(text))


def _system_end(text: str, turns: tuple[ChatMessage, ...], leading: int, render: Render) -> int:
    """Where the first message after the system prompt begins, so that its role is a part of what is shared."""
    if not 0 < leading < len(turns):
        return 0
    first = turns[leading]
    other = attrs.evolve(first, content="1" if first.content.lstrip().startswith("0") else "0")
    start = _rendered((*turns[:leading], other), render)
    return 0 if start is None else common_length(text, start)


def _rendered(turns: tuple[ChatMessage, ...], render: Render) -> str | None:
    """None when the template refuses such a conversation, as one that has no user's message yet."""
    try:
        return render(turns, False)
    except TokenizerFailed:
        return None


def common_length(one: str, other: str) -> int:
    """Characters at the start in which two texts agree."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low
