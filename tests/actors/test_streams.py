"""The stream registry and its credits."""

import hypothesis.strategies as st
from hypothesis import given

from mlx_serving.actors.admission.streams import Request, Sequence, Streams
from mlx_serving.actors.messages.admission import GenerationRequested, SequenceOutput
from mlx_serving.actors.messages.batching import SequenceQueued
from mlx_serving.actors.messages.values import Sampling, SequenceEnd, Stopping


def queued(index: int = 0, window: int = 8) -> SequenceQueued:
    return SequenceQueued(0, "m", b"", Sampling(), Stopping(), 0, 0.0, index=index, window=window)


def opened(streams: Streams, n: int = 1, window: int = 8) -> tuple[Request, list[Sequence]]:
    request = Request((b"peer", 1), GenerationRequested(1, n=n, window=window), 0.0, 10.0, model="m")
    streams.open(request)
    request.unfinished = n
    return request, [streams.add(request, queued(index, window)) for index in range(n)]


def test_a_consumer_without_credit_is_paused_once_and_resumed_at_a_quarter() -> None:
    _, (sequence,) = opened(Streams(0))
    assert not sequence.spend(7)
    assert sequence.spend(1)
    assert not sequence.spend(3)
    assert not sequence.refill(4)
    assert sequence.refill(1)
    assert not sequence.paused


@given(st.integers(1, 64), st.lists(st.integers(0, 9)))
def test_what_a_consumer_may_be_behind_is_bounded(window: int, bursts: list[int]) -> None:
    _, (sequence,) = opened(Streams(0), window=window)
    behind = 0
    for burst in bursts:
        if not sequence.paused:
            behind += burst
            sequence.spend(burst)
        assert behind <= window + max(bursts)


def test_a_request_is_over_with_its_last_choice_and_counts_its_prompt_once() -> None:
    streams = Streams(0)
    request, (one, two) = opened(streams, n=2)
    request.prompt_tokens = 5
    assert not streams.end(two, SequenceOutput(0, "", (), end=SequenceEnd("stop", 5, 3)))
    assert streams.end(one, SequenceOutput(0, "", (), end=SequenceEnd("length", 5, 4)))
    assert (request.usage.prompt_tokens, request.usage.completion_tokens) == (5, 7)


def test_a_sequence_queued_again_has_a_new_id_and_the_old_one_is_forgotten() -> None:
    streams = Streams(0)
    _, (old,) = opened(streams)
    new = streams.again(old)
    assert streams.sequence(old.queued.sequence_id) is None
    assert streams.sequence(new.queued.sequence_id) is new
    assert new.attempt == 2


def test_closing_a_request_names_what_still_runs() -> None:
    streams = Streams(0)
    request, sequences = opened(streams, n=3)
    streams.end(sequences[1], SequenceOutput(0, "", (), end=SequenceEnd("stop", 1, 1)))
    live = [sequences[0].queued.sequence_id, sequences[2].queued.sequence_id]
    assert streams.close(request) == live
    assert len(streams) == 0
    assert streams.close(request) == []


def test_requests_expire_at_their_deadline() -> None:
    streams = Streams(0)
    request, _ = opened(streams)
    assert streams.expired(9.9) == []
    assert streams.expired(10.0) == [request]
