"""Sorts an answer's text into content, reasoning and tool calls, and finds the stop string that ends it.

Stop strings count in the content alone: not in reasoning, not in the arguments of a call, and not across either.
"""

from __future__ import annotations

import attrs

from mlx_serving.actors.messages.values import AnswerFormat, ToolCallPart
from mlx_serving.actors.parsing.output import OutputParser, new_call_id
from mlx_serving.actors.parsing.parts import Part, merged
from mlx_serving.native import StopMatcher


@attrs.define
class Shown:
    """What a piece of text adds to each channel. `matched`: the stop string; nothing follows it."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallPart, ...] = ()
    matched: str | None = None


class Channels:
    """One answer. Without a format all text is content."""

    def __init__(self, stop: tuple[str, ...], form: AnswerFormat | None) -> None:
        self._stop = stop
        self._matcher = StopMatcher(stop) if stop else None
        self._form = form
        self._parser = OutputParser(form) if form is not None else None
        self._calls = 0

    @property
    def is_thinking(self) -> bool:
        """Whether the text that comes next is reasoning."""
        return self._parser is not None and self._parser.is_thinking

    @property
    def has_calls(self) -> bool:
        return self._calls > 0

    def feed(self, text: str) -> Shown:
        """Sort the next piece."""
        if self._parser is None:
            if self._matcher is None:
                return Shown(text)
            shown, matched = self._matcher.feed(text)
            return Shown(shown, matched=matched)
        return self._sort(self._parser.feed(text))

    def flush(self, text: str) -> Shown:
        """Sort the last piece, and give out what was held back; a stop string may turn up in it."""
        shown = self.feed(text)
        if shown.matched is None and self._parser is not None:
            _add(shown, self._sort(self._parser.finish()))
        if shown.matched is None:
            self._end_content(shown)
        return shown

    def _sort(self, parts: list[Part]) -> Shown:
        shown = Shown()
        for part in merged(parts):
            if part.kind == "content":
                self._content(shown, part.text)
            elif part.kind == "reasoning":
                shown.reasoning += part.text
            else:
                self._call(shown, part)
            if shown.matched is not None:
                break
        return shown

    def _content(self, shown: Shown, text: str) -> None:
        if self._matcher is not None:
            text, shown.matched = self._matcher.feed(text)
        shown.text += text

    def _call(self, shown: Shown, part: Part) -> None:
        if part.kind == "arguments":
            shown.tool_calls += (ToolCallPart(self._calls - 1, part.text),)
            return
        self._end_content(shown)
        if shown.matched is not None:
            return
        assert self._form is not None
        call_id = part.id or new_call_id(self._form)
        shown.tool_calls += (ToolCallPart(self._calls, "", call_id, part.text),)
        self._calls += 1

    def _end_content(self, shown: Shown) -> None:
        """No stop string goes on beyond here: what may have been the beginning of one is none."""
        if self._matcher is not None:
            shown.text += self._matcher.flush()
            shown.matched = self._matcher.matched
            self._matcher = StopMatcher(self._stop)


def _add(shown: Shown, more: Shown) -> None:
    shown.text += more.text
    shown.reasoning += more.reasoning
    shown.tool_calls += more.tool_calls
    shown.matched = more.matched
