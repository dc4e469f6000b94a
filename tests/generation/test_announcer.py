"""Batching's picture of a replica's prefix cache, put together from what the replica tells."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.actors.batching.prefixes import Prefixes
from mlx_serving.actors.generation.announcer import ANNOUNCE_SECONDS, Announcer
from mlx_serving.actors.generation.engine import HeldPrefixes

DIGESTS = st.sets(st.integers(0, 2**64 - 1), max_size=8)


@given(st.lists(st.tuples(DIGESTS, st.booleans(), st.floats(0, 0.5)), min_size=1, max_size=20))
def test_the_picture_is_true_once_the_last_change_is_due(changes: list[tuple[set[int], bool, float]]) -> None:
    announcer, picture, now = Announcer("r"), Prefixes(), 1000.0
    for version, (digests, lost, seconds) in enumerate(changes):
        now += seconds
        if lost:
            announcer.forget()
        message = announcer.news(HeldPrefixes(b"", version, digests), now)
        if message is not None:
            picture.told(message)
    message = announcer.news(HeldPrefixes(b"", len(changes), changes[-1][0]), now + ANNOUNCE_SECONDS)
    if message is not None:
        picture.told(message)
    assert picture.held == changes[-1][0]


def test_nothing_is_told_twice_or_too_often() -> None:
    announcer = Announcer("r")
    assert announcer.news(HeldPrefixes(b"", 1, {1}), 0.0) is not None
    assert announcer.news(HeldPrefixes(b"", 1, {1}), 10.0) is None
    assert announcer.news(HeldPrefixes(b"", 2, {1, 2}), 10.0) is not None
    assert announcer.news(HeldPrefixes(b"", 3, {1, 2, 3}), 10.0 + ANNOUNCE_SECONDS / 2) is None
    later = announcer.news(HeldPrefixes(b"", 3, {1, 2, 3}), 10.0 + ANNOUNCE_SECONDS)
    assert later is not None
    assert (len(later.added), later.dropped, later.is_whole) == (8, b"", False)


def test_an_engine_without_a_cache_tells_nothing() -> None:
    assert Announcer("r").news(None, 0.0) is None


def test_after_a_loss_everything_is_told_again_at_once() -> None:
    announcer = Announcer("r")
    announcer.news(HeldPrefixes(b"", 1, {1}), 0.0)
    announcer.forget()
    again = announcer.news(HeldPrefixes(b"", 1, {1}), 0.0)
    assert again is not None
    assert again.is_whole
