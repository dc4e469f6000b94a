"""How long work reports where it stands."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called often, from the thread that works; it must return at once."""

    def __call__(self, phase: str, done: int, total: int | None) -> None:
        """`phase` is one word of a sentence (download, verify, convert, wait); `done` and `total` are bytes.

        A `total` of None says that the end is not known.
        """


def silent(phase: str, done: int, total: int | None) -> None:
    """The progress of work nobody watches."""
