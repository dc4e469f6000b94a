"""The answers of gpt-oss: messages with headers, on a channel each.

Reasoning is on `analysis`, the answer on `final` and `commentary`; a message to `functions.name` is a call.
"""

from __future__ import annotations

import re

from mlx_serving.actors.parsing.reader import Reader, Reading

START, CHANNEL, CONSTRAIN, MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>")
_RECIPIENT = re.compile(r"to=functions\.([^\s<]+)")
_ANALYSIS = re.compile(r"<\|channel\|>\s*analysis")


def harmony(reader: Reader) -> Reading[None]:
    """The prompt ends with `<|start|>assistant`: the text begins inside a header. Other text is content."""
    while True:
        yield from reader.skip_space()
        if not (yield from reader.peek()):
            return
        begun = yield from reader.accept([START, CHANNEL, " to=functions.", "to=functions."])
        if not begun:
            yield from reader.until([START], reader.giver("content"))
            begun = START
        header, message = yield from reader.collect([MESSAGE, *ENDS])
        if message == MESSAGE:
            yield from _body(reader, begun + header)


def _body(reader: Reader, header: str) -> Reading[None]:
    ends = [*ENDS, START]
    recipient = _RECIPIENT.search(header)
    if recipient is not None:
        reader.give_call(recipient.group(1))
        yield from reader.until(ends, reader.giver("arguments"))
        return
    is_analysis = _ANALYSIS.search(header) is not None
    reader.is_thinking = is_analysis
    yield from reader.until(ends, reader.giver("reasoning" if is_analysis else "content"))
    reader.is_thinking = False
