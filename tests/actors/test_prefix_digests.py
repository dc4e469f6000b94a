"""Digests of token prefixes: one number stands for everything before it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.actors.messages.values import pack_ids
from mlx_serving.actors.prefix_digests import BLOCK_TOKENS, block_digests, packed_block_digests

IDS = st.lists(st.integers(0, 2**32 - 1), max_size=64)
NAMESPACES = st.binary(max_size=200)


@given(NAMESPACES, IDS, IDS)
def test_prompts_share_exactly_the_digests_of_their_common_blocks(
    namespace: bytes, one: list[int], other: list[int]
) -> None:
    ours, theirs = block_digests(namespace, one, 4), block_digests(namespace, other, 4)
    common = next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    for block, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        assert (a == b) == ((block + 1) * 4 <= common)


@given(NAMESPACES, IDS)
def test_there_is_one_64_bit_digest_for_each_whole_block(namespace: bytes, ids: list[int]) -> None:
    digests = block_digests(namespace, ids, 4)
    assert len(digests) == len(ids) // 4
    assert all(0 <= digest < 2**64 for digest in digests)
    assert digests == packed_block_digests(namespace, pack_ids(ids), 4)


def test_namespaces_do_not_share() -> None:
    ids = list(range(BLOCK_TOKENS * 2))
    assert not set(block_digests(b"one", ids)) & set(block_digests(b"two", ids))


def test_a_later_block_has_another_digest_than_the_same_tokens_at_the_start() -> None:
    first, second = block_digests(b"", [7] * BLOCK_TOKENS * 2)
    assert first != second
