"""A sequence goes to the replica that holds the longest prefix of its prompt, as long as that is worth its queue."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.actors.batching.scheduler import Scheduler
from mlx_serving.actors.messages.batching import PrefixesHeld, SequenceQueued
from mlx_serving.actors.messages.values import Sampling, Stopping, pack_ids
from mlx_serving.actors.prefix_digests import block_digests, namespace, pack_digests

BASE = b"weights"
PROMPT = list(range(1000))


def sequence(number: int, prompt: list[int], *, salt: str = "", replica: str | None = None) -> SequenceQueued:
    return SequenceQueued(
        number, "m", pack_ids(prompt), Sampling(), Stopping(max_tokens=4), 1, 0.0, cache_salt=salt, replica=replica
    )


def told(replica: str, prompt: list[int], *, salt: str = "", whole: bool = False) -> PrefixesHeld:
    digests = block_digests(namespace(BASE, salt), prompt)
    return PrefixesHeld(replica, BASE, pack_digests(digests), is_whole=whole)


def two_replicas(load_tokens: int = 100, slots: int = 32) -> Scheduler:
    scheduler = Scheduler(ageing=10, load_tokens=load_tokens)
    for name in ("a", "b"):
        scheduler.replica_up(name, "m", slots, 1000)
        scheduler.prefixes_held(PrefixesHeld(name, BASE, b""))
    return scheduler


def placed(scheduler: Scheduler, *sequences: SequenceQueued) -> list[str]:
    for each in sequences:
        scheduler.enqueue(each)
    return [assignment.replica for assignment in scheduler.decide(0.0)]


def test_the_replica_with_the_longest_prefix_gets_the_sequence() -> None:
    scheduler = two_replicas()
    scheduler.prefixes_held(told("a", [5] * 500))
    scheduler.prefixes_held(told("a", PROMPT[:200]))
    scheduler.prefixes_held(told("b", PROMPT[:700]))
    assert placed(scheduler, sequence(1, PROMPT)) == ["b"]
    scheduler.ended("b", [1])
    assert placed(scheduler, sequence(2, [5] * 500)) == ["a"]


def test_another_salt_finds_nothing() -> None:
    scheduler = two_replicas()
    scheduler.prefixes_held(told("b", PROMPT, salt="t"))
    assert placed(scheduler, sequence(1, PROMPT)) == ["a"]
    scheduler.ended("a", [1])
    assert placed(scheduler, sequence(2, PROMPT, salt="t")) == ["b"]


def test_what_was_dropped_no_longer_counts() -> None:
    scheduler = two_replicas()
    scheduler.prefixes_held(told("b", PROMPT))
    digests = pack_digests(block_digests(namespace(BASE), PROMPT))
    scheduler.prefixes_held(PrefixesHeld("b", BASE, b"", digests))
    assert placed(scheduler, sequence(1, PROMPT)) == ["a"]


def test_a_whole_report_replaces_what_was_told_before() -> None:
    scheduler = two_replicas()
    scheduler.prefixes_held(told("b", PROMPT))
    scheduler.prefixes_held(told("b", [9] * 200, whole=True))
    assert placed(scheduler, sequence(1, PROMPT)) == ["a"]


def test_requests_that_come_together_stay_together_until_that_costs_more_than_the_prefix() -> None:
    scheduler = two_replicas(load_tokens=100)
    together = placed(scheduler, *(sequence(number, PROMPT) for number in range(24)))
    assert together[:10] == ["a"] * 10
    assert together[10] == "b"
    assert abs(together.count("a") - together.count("b")) <= 10


def test_a_replica_without_a_free_slot_does_not_hold_the_sequence_back() -> None:
    scheduler = two_replicas(load_tokens=0, slots=1)
    scheduler.prefixes_held(told("b", PROMPT))
    assert placed(scheduler, sequence(1, PROMPT), sequence(2, PROMPT)) == ["b", "a"]


def test_what_ended_leaves_only_what_the_replica_tells() -> None:
    scheduler = two_replicas()
    assert placed(scheduler, sequence(1, PROMPT)) == ["a"]
    scheduler.ended("a", [1])
    load = scheduler._replicas["a"]
    assert not load.prefixes.coming
    assert not load.digests


def test_a_sequence_for_one_replica_waits_for_it_and_holds_back_nobody() -> None:
    scheduler = two_replicas(slots=1)
    assert placed(scheduler, sequence(1, PROMPT, replica="b")) == ["b"]
    assert placed(scheduler, sequence(2, PROMPT, replica="b"), sequence(3, PROMPT)) == ["a"]
    scheduler.ended("b", [1])
    assert [each.sequence.sequence_id for each in scheduler.decide(0.0)] == [2]


def test_a_sequence_that_waits_for_a_replica_is_lost_with_it() -> None:
    scheduler = two_replicas(slots=1)
    assert placed(scheduler, sequence(1, PROMPT, replica="b"), sequence(2, PROMPT, replica="b")) == ["b"]
    assert scheduler.replica_down("b") == (1, 2)
    assert scheduler.observe(0.0).waiting == 0


def test_replicas_that_tell_nothing_share_by_load() -> None:
    scheduler = Scheduler(ageing=10, load_tokens=100)
    for name in ("a", "b"):
        scheduler.replica_up(name, "m", 8, 1000)
    assert sorted(placed(scheduler, *(sequence(number, PROMPT) for number in range(8)))) == ["a"] * 4 + ["b"] * 4


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 15)), max_size=60), st.integers(1, 200))
def test_no_replica_runs_more_than_the_prefix_is_worth(prompts: list[tuple[int, int]], load_tokens: int) -> None:
    scheduler = two_replicas(load_tokens, slots=100)
    counts = {"a": 0, "b": 0}
    longest = 0
    for number, (kind, blocks) in enumerate(prompts):
        longest = max(longest, blocks * 64)
        (replica,) = placed(scheduler, sequence(number, [kind] * blocks * 64))
        counts[replica] += 1
        assert abs(counts["a"] - counts["b"]) <= longest / load_tokens + 1
