"""Content with blocks of calls in it, each of which begins with a marker."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mlx_serving.actors.parsing.reader import Reader, Reading

Block = Callable[[Reader, str], Reading[bool]]
"""Reads what follows the marker that was found; whether there was a call. Fails its attempt where there was none."""


def blocks(
    reader: Reader,
    markers: Sequence[str],
    block: Block,
    stray: Sequence[str] = (),
    after_call: bool = False,
) -> Reading[None]:
    """The whole answer. White space alone before a block is no content, and after one neither are `stray` markers."""
    while True:
        wanted = [*markers, *(stray if after_call else ())]
        marker = yield from _next(reader, wanted, after_call)
        if not marker:
            return
        if marker in markers:
            reader.attempt(marker)
            after_call = yield from block(reader, marker)


def _next(reader: Reader, markers: Sequence[str], after_call: bool) -> Reading[str]:
    space = yield from reader.skip_space()
    marker = yield from reader.accept(markers)
    if marker:
        return marker
    if reader.text or not after_call:
        reader.give("content", space)
    return (yield from reader.until(markers, reader.giver("content")))
