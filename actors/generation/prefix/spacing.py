"""Where prefill stops to keep a checkpoint. Pure."""

from __future__ import annotations

from collections.abc import Sequence

LEAST_APART = 64
"""Tokens between two checkpoints: fewer are computed again faster than a state is kept."""
MOST_APART = 2048
"""Tokens without a segment's end after which one is kept all the same."""


def checkpoint_offsets(segments: Sequence[int], start: int, end: int, most: int) -> list[int]:
    """Offsets in (start, end], ascending, of `most` checkpoints at most; the last is `end`, however near.

    `segments` are where messages end. When they are too many, the first one, which is the system prompt's and shared
    most widely, and the last ones stay.
    """
    if end <= start or most < 1:
        return []
    chosen: list[int] = []
    for offset in [*(each for each in sorted(set(segments)) if start < each < end), end]:
        last = chosen[-1] if chosen else start
        chosen += range(last + MOST_APART, offset - LEAST_APART, MOST_APART)
        last = chosen[-1] if chosen else start
        if offset == end or offset - last >= LEAST_APART:
            chosen.append(offset)
    if len(chosen) <= most:
        return chosen
    return [*chosen[:1], *chosen[len(chosen) - most + 1 :]] if most > 1 else chosen[-1:]
