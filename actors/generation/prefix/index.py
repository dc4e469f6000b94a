"""A radix tree over token ids whose edges refer to parts of blocks. Pure.

- Any two sequences share what they have in common, to the token: an edge is split where they part, and both parts go
  on referring to the block, which is freed when no edge refers to it any more.
- Blocks end at multiples of `block_tokens`, or where their sequence ended. One that ended early is replaced when its
  sequence grows, so that a long conversation does not fall into crumbs.
- Use is ordered so that a prefix is always more recent than what follows it. The least recent edge is therefore a
  leaf, and evicting in that order is true LRU without ever leaving an edge behind whose beginning is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic

from mlx_serving.actors.generation.prefix.blocks import Block, P, Piece
from mlx_serving.actors.generation.prefix.node import Node, Path, shared_tokens
from mlx_serving.actors.generation.prefix.recency import Recency
from mlx_serving.actors.prefix_digests import BLOCK_TOKENS, block_digests

Ids = tuple[int, ...]


class PrefixIndex(Generic[P]):
    """Which prefixes are held, by namespace. `ticks` orders uses, here and in whatever shares it."""

    def __init__(self, ticks: Iterator[int], block_tokens: int) -> None:
        self._ticks = ticks
        self._block_tokens = block_tokens
        self._roots: dict[bytes, dict[int, Node[P]]] = {}
        self._nodes: Recency[Node[P]] = Recency()
        self.bytes = 0
        self.tokens = 0
        self.entries = 0
        """Prefixes that are no other's beginning."""
        self.digests: set[int] = set()
        """Of every prefix held that is a multiple of BLOCK_TOKENS long."""
        self.version = 0
        """Changes whenever `digests` does."""

    def match(self, namespace: bytes, ids: Ids) -> Path[P]:
        """The longest prefix of `ids` held, to the token."""
        nodes: list[Node[P]] = []
        children, position = self._roots.get(namespace, {}), 0
        while position < len(ids):
            node = children.get(ids[position])
            if node is None:
                break
            nodes.append(node)
            position += shared_tokens(node.tokens, ids, position)
            if position < node.stop:
                break
            children = node.children
        return Path(namespace, tuple(nodes), position)

    @contextmanager
    def pinned(self, path: Path[P]) -> Iterator[None]:
        """Nothing of the path is evicted meanwhile."""
        blocks = [node.block for node in path.nodes]
        for block in blocks:
            block.pins += 1
        try:
            yield
        finally:
            for block in blocks:
                block.pins -= 1

    def touch(self, path: Path[P]) -> None:
        """The path was used just now."""
        for node in reversed(path.nodes):
            self._nodes.touch(node, next(self._ticks))

    def missing(self, path: Path[P], length: int) -> list[tuple[int, int]]:
        """The pieces [start, stop) to insert so that the first `length` tokens of the path's sequence are held."""
        if path.tokens >= length:
            return []
        start = path.tokens
        if path.nodes and path.nodes[-1].block.stop == start and start % self._block_tokens:
            start = path.nodes[-1].block.start
        ends = [*range((start // self._block_tokens + 1) * self._block_tokens, length, self._block_tokens), length]
        return list(zip([start, *ends[:-1]], ends, strict=True))

    def insert(self, path: Path[P], ids: Ids, pieces: Sequence[Piece[P]]) -> list[Block[P]]:
        """Hold `ids` up to the end of the last piece, and touch it. Returns the new blocks.

        `path` is what `match` says of `ids`. The pieces follow each other; the first begins within the path and ends
        behind it, and takes the place of the blocks whose tokens it has.
        """
        if not pieces:
            self.touch(path)
            return []
        assert pieces[0].start <= path.tokens < pieces[0].stop
        blocks = [Block(piece.start, piece.stop, piece.payload) for piece in pieces]
        nodes = list(path.nodes)
        if nodes and nodes[-1].stop > path.tokens:
            used = self._nodes.tick_of(nodes[-1])
            self._nodes.touch(nodes[-1].split(path.tokens), used)
        self.bytes += sum(block.payload.nbytes for block in blocks)
        self._replace((node for node in nodes if node.start >= blocks[0].start), blocks[0])
        nodes += self._append(path, ids, blocks)
        self.touch(Path(path.namespace, tuple(nodes), len(ids)))
        return blocks

    def oldest(self) -> int | None:
        """The tick at which the edge that would be evicted next was used."""
        node = self._evictable()
        return None if node is None else self._nodes.tick_of(node)

    def evict_oldest(self) -> None:
        """Let the least recently used edge go that is not pinned; at least one must be there."""
        node = self._evictable()
        assert node is not None
        self._remove(node)

    def remove(self, path: Path[P]) -> None:
        """Let everything go that begins with the first node of the path."""
        nodes = list(path.nodes[:1])
        for node in nodes:
            nodes.extend(node.children.values())
        for node in reversed(nodes):
            node.block.is_void = True
            self._remove(node)

    def clear(self) -> None:
        """Let everything go, at once: no node stays behind in a circle of references."""
        for siblings in [*self._roots.values(), *(node.children for node in self._nodes)]:
            siblings.clear()
        self._roots.clear()
        self._nodes.clear()
        self.digests.clear()
        self.version += 1
        self.bytes = self.tokens = self.entries = 0

    def _evictable(self) -> Node[P] | None:
        return self._nodes.oldest(lambda node: not (node.children or node.block.pins))

    def _replace(self, nodes: Iterable[Node[P]], block: Block[P]) -> None:
        for node in nodes:
            released = node.hold(block)
            released.is_void = not released.holders
            self._released(released)

    def _append(self, path: Path[P], ids: Ids, blocks: Sequence[Block[P]]) -> list[Node[P]]:
        """New nodes, one a block, behind the path."""
        stop = blocks[-1].stop
        digests = block_digests(path.namespace, ids[:stop])
        siblings = path.nodes[-1].children if path.nodes else self._roots.setdefault(path.namespace, {})
        self.entries += bool(siblings) or not path.nodes
        start, added = path.tokens, []
        for block in blocks:
            named = digests[start // BLOCK_TOKENS : block.stop // BLOCK_TOKENS]
            node = Node(ids[start : block.stop], start, block, siblings, tuple(named))
            block.holders += 1
            siblings[ids[start]] = node
            self.digests.update(named)
            added.append(node)
            start, siblings = block.stop, node.children
        self.tokens += stop - path.tokens
        self.version += stop // BLOCK_TOKENS > path.tokens // BLOCK_TOKENS
        return added

    def _remove(self, node: Node[P]) -> None:
        self._nodes.forget(node)
        del node.siblings[node.tokens[0]]
        self.entries -= bool(node.siblings) or not node.start
        if not (node.start or node.siblings):
            self._roots = {namespace: children for namespace, children in self._roots.items() if children}
        self.tokens -= len(node.tokens)
        self.digests.difference_update(node.digests)
        self.version += bool(node.digests)
        node.block.holders -= 1
        self._released(node.block)

    def _released(self, block: Block[P]) -> None:
        if not block.holders:
            self.bytes -= block.payload.nbytes
