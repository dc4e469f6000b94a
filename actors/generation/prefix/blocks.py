"""Immutable pieces of what a model computed from tokens, and the parts of them that make up a prefix. Pure."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

import attrs


class Payload(Protocol):
    """Whatever the engine keeps for some tokens."""

    @property
    def nbytes(self) -> int: ...


P = TypeVar("P", bound=Payload)


@attrs.define(eq=False)
class Block(Generic[P]):
    """The payload of tokens [start, stop) of a sequence. It lives as long as some node holds it."""

    start: int
    stop: int
    payload: P
    holders: int = 0
    pins: int = 0
    """While there are any, no node that holds it is evicted."""
    is_void: bool = False
    """It is of no use to anyone: a block with more tokens has its place, or it is not to be trusted."""


@attrs.frozen
class Span(Generic[P]):
    """Tokens [start, stop) of a sequence, all in one block."""

    block: Block[P]
    start: int
    stop: int

    @property
    def offset(self) -> int:
        """Of its first token in the block."""
        return self.start - self.block.start


@attrs.frozen
class Piece(Generic[P]):
    """A payload on its way into the index: tokens [start, stop) of the sequence it is stored with."""

    start: int
    stop: int
    payload: P
