"""One edge of the radix tree: tokens that follow each other in one block. Pure."""

from __future__ import annotations

from typing import Generic

import attrs

from mlx_serving.actors.generation.prefix.blocks import Block, P, Span
from mlx_serving.actors.prefix_digests import BLOCK_TOKENS


@attrs.define(eq=False)
class Node(Generic[P]):
    """Tokens [start, start + len(tokens)) of every sequence that goes through it.

    `digests` name the prefixes that end inside it or at its end, at each multiple of BLOCK_TOKENS. Children differ in
    their first token, by which they are found.
    """

    tokens: tuple[int, ...]
    start: int
    block: Block[P]
    siblings: dict[int, Node[P]]
    """Where its parent keeps it."""
    digests: tuple[int, ...] = ()
    children: dict[int, Node[P]] = attrs.field(factory=dict)

    @property
    def stop(self) -> int:
        return self.start + len(self.tokens)

    def hold(self, block: Block[P]) -> Block[P]:
        """Refer to another block for the same tokens; returns the one that was let go."""
        block.holders += 1
        self.block.holders -= 1
        released, self.block = self.block, block
        return released

    def split(self, at: int) -> Node[P]:
        """Keep the tokens before position `at`; those from there on go, with the children, to the new node."""
        kept = at - self.start
        boundary = at // BLOCK_TOKENS - self.start // BLOCK_TOKENS
        lower = Node(self.tokens[kept:], at, self.block, {}, self.digests[boundary:], self.children)
        for child in lower.children.values():
            child.siblings = lower.children
        self.block.holders += 1
        self.tokens, self.digests = self.tokens[:kept], self.digests[:boundary]
        self.children = {lower.tokens[0]: lower}
        lower.siblings = self.children
        return lower


@attrs.frozen
class Path(Generic[P]):
    """The longest stored prefix of a sequence: `tokens` of it. Of the last node it may use a part."""

    namespace: bytes
    nodes: tuple[Node[P], ...]
    tokens: int

    def cut(self, tokens: int) -> Path[P]:
        """Its first `tokens` tokens at most."""
        return Path(self.namespace, tuple(node for node in self.nodes if node.start < tokens), min(tokens, self.tokens))

    def spans(self, limit: int) -> list[Span[P]]:
        """The first `limit` tokens at most; nodes that follow each other in one block make one span."""
        spans: list[Span[P]] = []
        for node in self.nodes:
            stop = min(node.stop, self.tokens, limit)
            if stop <= node.start:
                break
            if spans and spans[-1].block is node.block:
                spans[-1] = attrs.evolve(spans[-1], stop=stop)
            else:
                spans.append(Span(node.block, node.start, stop))
        return spans


def shared_tokens(tokens: tuple[int, ...], ids: tuple[int, ...], start: int) -> int:
    """How many of `tokens` are the ids from `start` on."""
    window = ids[start : start + len(tokens)]
    if window == tokens:
        return len(tokens)
    return next(
        (i for i, (ours, theirs) in enumerate(zip(tokens, window, strict=False)) if ours != theirs), len(window)
    )
