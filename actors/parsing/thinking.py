"""Reasoning between two markers at the beginning of an answer."""

from __future__ import annotations

import attrs

from mlx_serving.actors.parsing.reader import SPACE, Reader, Reading


@attrs.frozen
class Thinking:
    """`is_open`: the prompt has the opening marker already.

    White space at the borders of the reasoning, and after it, belongs to neither side. A marker that comes later in
    the answer is content: a model that writes about markers does not reason.
    """

    open: str
    close: str
    is_open: bool = False

    def read(self, reader: Reader) -> Reading[None]:
        space = yield from reader.skip_space()
        if not (yield from reader.accept([self.open])) and not self.is_open:
            reader.give("content", space)
        else:
            yield from self._reasoning(reader)
        yield from reader.until([], reader.giver("content"))

    def _reasoning(self, reader: Reader) -> Reading[None]:
        reader.is_thinking = True
        yield from reader.skip_space()
        held = ""

        def give(text: str) -> None:
            nonlocal held
            held += text
            shown = held.rstrip(SPACE)
            reader.give("reasoning", shown)
            held = held[len(shown) :]

        yield from reader.until([self.close], give)
        reader.is_thinking = False
        yield from reader.skip_space()
