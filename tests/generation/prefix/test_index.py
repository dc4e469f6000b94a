"""The radix index against a model that keeps every token of every sequence apart."""

from __future__ import annotations

from itertools import count

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_serving.actors.generation.prefix.blocks import Block, Piece
from mlx_serving.actors.generation.prefix.budget import evict
from mlx_serving.actors.generation.prefix.index import PrefixIndex
from mlx_serving.actors.generation.prefix.node import Path
from mlx_serving.actors.prefix_digests import BLOCK_TOKENS, block_digests

BLOCK = 4
Ids = tuple[int, ...]


@attrs.frozen
class Tokens:
    """A payload that is the tokens themselves, a byte each."""

    ids: Ids

    @property
    def nbytes(self) -> int:
        return len(self.ids)


def rest_of_edge(path: Path[Tokens]) -> Ids:
    """The whole of an edge counts as used when a part of it is."""
    return path.nodes[-1].tokens[path.tokens - path.nodes[-1].start :] if path.nodes else ()


class Held:
    """The index, and beside it every prefix that should be held with the turn in which it was last used."""

    def __init__(self, block: int = BLOCK) -> None:
        self.index: PrefixIndex[Tokens] = PrefixIndex(count(), block)
        self.used: dict[tuple[bytes, Ids], int] = {}
        self.turn = 0

    def store(self, namespace: bytes, ids: Ids) -> None:
        path = self.index.match(namespace, ids)
        missing = self.index.missing(path, len(ids))
        pieces = [Piece(start, stop, Tokens(ids[start:stop])) for start, stop in missing]
        self.index.insert(path, ids, pieces)
        self._use(namespace, ids if missing else ids + rest_of_edge(path))

    def look_up(self, namespace: bytes, ids: Ids) -> Path[Tokens]:
        path = self.index.match(namespace, ids)
        self.index.touch(path)
        self._use(namespace, ids[: path.tokens] + rest_of_edge(path))
        return path

    def shared(self, namespace: bytes, ids: Ids) -> int:
        return next(
            length for length in range(len(ids), -1, -1) if not length or (namespace, ids[:length]) in self.used
        )

    def evict(self, limit: int) -> None:
        evict([self.index], limit)
        gone = {key for key in self.used if self.index.match(*key).tokens < len(key[1])}
        left = self.used.keys() - gone
        leaves = {key for key in left if not any((key[0], (*key[1], token)) in left for token in range(4))}
        if gone and leaves:
            assert max(self.used[key] for key in gone) <= min(self.used[key] for key in leaves)
        self.used = {key: self.used[key] for key in left}

    def _use(self, namespace: bytes, ids: Ids) -> None:
        self.turn += 1
        self.used |= {(namespace, ids[:length]): self.turn for length in range(1, len(ids) + 1)}

    def blocks(self) -> dict[Block[Tokens], int]:
        """How many edges refer to each block."""
        holders: dict[Block[Tokens], int] = {}
        for node in self.index._nodes:
            holders[node.block] = holders.get(node.block, 0) + 1
        return holders


sequences = st.lists(st.integers(0, 3), min_size=1, max_size=18).map(tuple)
namespaces = st.sampled_from([b"a", b"b"])
actions = st.lists(
    st.one_of(
        st.tuples(st.just("store"), namespaces, sequences),
        st.tuples(st.just("look_up"), namespaces, sequences),
        st.tuples(st.just("evict"), st.integers(0, 60), st.just(())),
    ),
    max_size=25,
)


@settings(deadline=None)
@given(actions, st.sampled_from([1, 3, 4, 64]))
def test_the_index_holds_what_was_stored_to_the_token_and_evicts_the_least_recent(
    script: list[tuple[str, bytes, Ids]], block: int
) -> None:
    held = Held(block)
    for action, argument, ids in script:
        if action == "store":
            held.store(argument, ids)
        elif action == "look_up":
            assert held.look_up(argument, ids).tokens == held.shared(argument, ids)
        else:
            held.evict(argument)  # type: ignore[arg-type]
            assert held.index.bytes <= argument  # type: ignore[operator]
        blocks = held.blocks()
        assert held.index.tokens == len(held.used)
        assert held.index.entries == sum(not node.children for node in held.index._nodes)
        assert held.index.bytes == sum(each.payload.nbytes for each in blocks)
        assert all(each.holders == count for each, count in blocks.items())


@settings(deadline=None)
@given(st.lists(sequences, min_size=1, max_size=8), sequences)
def test_the_spans_of_a_path_hold_its_tokens(stored: list[Ids], asked: Ids) -> None:
    held = Held()
    for ids in stored:
        held.store(b"", ids)
    path = held.look_up(b"", asked)
    for limit in (path.tokens, max(0, path.tokens - 1)):
        spans = path.spans(limit)
        parts = [span.block.payload.ids[span.offset : span.offset + span.stop - span.start] for span in spans]
        assert tuple(token for part in parts for token in part) == asked[:limit]


@settings(deadline=None)
@given(st.lists(st.tuples(namespaces, st.integers(0, 200), st.integers(0, 3)), max_size=8), st.integers(0, 600))
def test_digests_name_every_block_aligned_prefix_held(stored: list[tuple[bytes, int, int]], limit: int) -> None:
    held = Held(block=48)
    sequences = [(namespace, (0,) * (length // 2) + (branch,) * length) for namespace, length, branch in stored]
    for namespace, ids in sequences:
        held.store(namespace, ids)
    versions = held.index.version
    before = set(held.index.digests)
    evict([held.index], limit)
    expected = set()
    for namespace, ids in sequences:
        length = held.index.match(namespace, ids).tokens
        expected.update(block_digests(namespace, ids[:length]))
    assert held.index.digests == expected
    assert (held.index.version != versions) == (before != expected)
    assert all(len(ids) >= BLOCK_TOKENS for _, ids in sequences) or len(expected) <= sum(
        len(ids) // BLOCK_TOKENS for _, ids in sequences
    )


def test_a_pinned_path_survives_eviction_until_it_is_let_go() -> None:
    held = Held()
    held.store(b"", (1, 2, 3, 0, 1, 2))
    held.store(b"", (3, 3, 3))
    path = held.index.match(b"", (1, 2, 3, 0, 1))
    with held.index.pinned(path):
        assert evict([held.index], 0) == 1
        assert held.index.match(b"", (1, 2, 3, 0, 1, 2)).tokens == 6
    evict([held.index], 0)
    assert (held.index.bytes, held.index.tokens, held.index.entries) == (0, 0, 0)


def test_a_growing_sequence_leaves_no_crumbs() -> None:
    held = Held()
    ids: Ids = ()
    for token in range(40):
        ids = (*ids, token % 4)
        held.store(b"", ids)
    assert sorted((block.start, block.stop) for block in held.blocks()) == [
        (at, at + BLOCK) for at in range(0, 40, BLOCK)
    ]
    assert held.index.bytes == 40


def test_two_sequences_share_a_block_to_the_token() -> None:
    held = Held()
    held.store(b"", (1, 2, 3, 0))
    held.store(b"", (1, 2, 0, 0))
    assert held.index.bytes == 4 + 2
    assert held.index.entries == 2
    assert held.index.match(b"", (1, 2, 3, 0)).tokens == 4
    assert held.index.match(b"other", (1, 2, 3, 0)).tokens == 0


def test_pieces_that_begin_inside_the_path_take_the_place_of_what_they_cover() -> None:
    held = Held()
    ids = (1, 2, 3, 0, 1, 2, 3, 0)
    held.store(b"", ids[:6])
    path = held.index.match(b"", ids)
    held.index.insert(path, ids, [Piece(4, 8, Tokens(ids[4:]))])
    assert held.index.bytes == 8
    assert held.index.match(b"", ids).spans(8)[-1].offset == 0
