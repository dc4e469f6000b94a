"""Checkpoints against a plain dictionary of prefixes."""

from __future__ import annotations

from itertools import count, pairwise

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_serving.actors.generation.prefix.budget import evict
from mlx_serving.actors.generation.prefix.checkpoints import Checkpoints
from mlx_serving.actors.generation.prefix.spacing import LEAST_APART, MOST_APART, checkpoint_offsets

Ids = tuple[int, ...]


@attrs.frozen
class State:
    nbytes: int


sequences = st.lists(st.integers(0, 2), max_size=8).map(tuple)
namespaces = st.sampled_from([b"a", b"b"])


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), namespaces, sequences, st.integers(1, 9)),
            st.tuples(st.just("find"), namespaces, sequences, st.just(0)),
            st.tuples(st.just("evict"), st.just(b""), st.just(()), st.integers(0, 40)),
        ),
        max_size=30,
    )
)
def test_the_longest_exact_prefix_is_found_and_the_least_recent_state_evicted(
    script: list[tuple[str, bytes, Ids, int]],
) -> None:
    checkpoints: Checkpoints[State] = Checkpoints(count())
    held: dict[tuple[bytes, Ids], int] = {}
    for action, namespace, ids, size in script:
        if action == "add":
            checkpoints.add(namespace, ids, State(size))
            held.pop((namespace, ids), None)
            held[namespace, ids] = size
        elif action == "find":
            lengths = [length for length in range(len(ids) + 1) if (namespace, ids[:length]) in held]
            found = checkpoints.longest(namespace, ids)
            assert (found.tokens if found else None) == (max(lengths) if lengths else None)
            if found:
                checkpoints.touch(found)
                held[namespace, ids[: found.tokens]] = held.pop((namespace, ids[: found.tokens]))
        else:
            evict([checkpoints], size)
            while sum(held.values()) > size:
                del held[next(iter(held))]
        assert checkpoints.bytes == sum(held.values())
        assert checkpoints.entries == len(held)


def test_a_pinned_checkpoint_survives_eviction() -> None:
    checkpoints: Checkpoints[State] = Checkpoints(count())
    pinned = checkpoints.add(b"", (1,), State(5))
    pinned.pins += 1
    checkpoints.add(b"", (2,), State(5))
    evict([checkpoints], 0)
    assert checkpoints.bytes == 5
    pinned.pins -= 1
    evict([checkpoints], 0)
    assert checkpoints.bytes == 0


def test_two_stores_give_up_what_is_oldest_of_both() -> None:
    ticks = count()
    first: Checkpoints[State] = Checkpoints(ticks)
    second: Checkpoints[State] = Checkpoints(ticks)
    old = first.add(b"", (1,), State(1))
    second.add(b"", (1,), State(1))
    first.touch(old)
    assert evict([first, second], 1) == 1
    assert (first.bytes, second.bytes) == (1, 0)


@given(st.lists(st.integers(0, 9000), max_size=12), st.integers(0, 5000), st.integers(0, 9000), st.integers(0, 20))
def test_checkpoints_are_apart_end_with_the_prompt_and_are_not_too_many(
    segments: list[int], start: int, end: int, most: int
) -> None:
    offsets = checkpoint_offsets(segments, start, end, most)
    assert len(offsets) <= most
    assert offsets == sorted(set(offsets))
    if offsets:
        assert offsets[-1] == end
        gaps = [after - before for before, after in pairwise(offsets)]
        assert all(gap >= LEAST_APART for gap in gaps[:-1])
        if len(offsets) < most:
            assert all(gap <= MOST_APART + LEAST_APART for gap in [offsets[0] - start, *gaps])
    else:
        assert end <= start or most == 0


def test_the_system_prompt_and_the_latest_messages_come_first_when_there_are_too_many() -> None:
    assert checkpoint_offsets([100, 200, 300, 400], 0, 500, 3) == [100, 400, 500]
    assert checkpoint_offsets([100, 200, 300, 400], 0, 500, 1) == [500]
    assert checkpoint_offsets([10, 100, 120, 490], 0, 500, 9) == [100, 490, 500]
