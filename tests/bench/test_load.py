"""The load generator against a small real server."""

from __future__ import annotations

import attrs
import pytest
from support.event_server import EventServer

from tools.bench import load
from tools.bench.generator import Generator, arrivals
from tools.bench.spec import Load, Outcome, Request


def _run(server: EventServer, *requests: Request, **options: object) -> list[Outcome]:
    settings = {"clients": 2, "timeout": 10.0, **options}
    return Generator(Load("127.0.0.1", server.port, requests, **settings)).run()  # type: ignore[arg-type]


def test_every_event_and_the_usage_arrive() -> None:
    with EventServer() as server:
        (outcome,) = _run(server, Request({"max_tokens": 50}))
    assert outcome.error is None
    assert (outcome.events, outcome.tokens, outcome.prompt_tokens) == (50, 50, 3)
    assert outcome.finish_reason == "length"
    assert outcome.text == "".join(f"w{n} " for n in range(50))
    assert outcome.first is not None
    assert outcome.last is not None
    assert 0 < outcome.first <= outcome.last <= outcome.ended - outcome.started
    assert len(outcome.gaps) == 49


def test_several_events_in_one_chunk_are_all_counted() -> None:
    with EventServer() as server:
        (outcome,) = _run(server, Request({"max_tokens": 50, "per_write": 7}))
    assert outcome.events == 50


def test_a_body_that_ends_with_the_connection_is_complete() -> None:
    with EventServer() as server:
        outcomes = _run(server, *[Request({"max_tokens": 5, "close": True})] * 3)
        assert server.connections == 3
    assert [outcome.error for outcome in outcomes] == [None] * 3


def test_clients_of_a_closed_loop_keep_their_connections() -> None:
    with EventServer() as server:
        outcomes = _run(server, *[Request({"max_tokens": 5, "n": n}) for n in range(20)], clients=4)
        assert server.connections == 4
        assert sorted(body["n"] for body in server.requests) == list(range(20))
    assert [outcome.index for outcome in outcomes] == list(range(20))


def test_an_open_loop_sends_everything() -> None:
    with EventServer() as server:
        outcomes = _run(server, *[Request({"max_tokens": 2})] * 20, rate=1000.0)
    begin = min(outcome.started for outcome in outcomes)
    moments = [outcome.started - begin for outcome in outcomes]
    assert all(outcome.error is None for outcome in outcomes)
    assert moments == sorted(moments)


def test_arrivals_have_the_rate_and_depend_on_the_seed_alone() -> None:
    moments = arrivals(10_000, 50.0, seed=3)
    assert moments == arrivals(10_000, 50.0, seed=3)
    assert moments != arrivals(10_000, 50.0, seed=4)
    assert moments[-1] == pytest.approx(200, rel=0.05)


def test_a_request_that_is_left_after_some_events_is_no_error() -> None:
    with EventServer() as server:
        left, other = _run(server, Request({"max_tokens": 200_000}, cancel_after=5), Request({"max_tokens": 9}))
    assert left.cancelled
    assert left.error is None
    assert left.events >= 5
    assert not other.cancelled
    assert other.events == 9


def test_a_reader_that_pauses_reads_everything_afterwards() -> None:
    with EventServer() as server:
        request = Request({"max_tokens": 5000}, pause_after=100, pause_seconds=0.2)
        paused, other = _run(server, request, Request({"max_tokens": 5000}), keep_times=True)
    assert paused.error is None
    assert paused.text == other.text
    assert paused.paused_at is not None
    assert not [time for time in paused.times if 0 < time - paused.paused_at < 0.2]
    assert max(paused.gaps) >= 0.2


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"status": 429}, "status 429"),
        ({"max_tokens": 9, "cut": True}, "truncated"),
        ({"hang": True}, "timeout"),
        ({"max_tokens": 9, "close": True, "cut": True}, "truncated"),
    ],
)
def test_errors_are_counted_by_kind(body: dict[str, object], error: str) -> None:
    with EventServer() as server:
        outcomes = _run(server, Request(body), Request({"max_tokens": 3}), timeout=1.0 if "hang" in body else 10.0)
    assert [outcome.error for outcome in outcomes] == [error, None]
    summary = load.summarise(outcomes)
    assert summary.errors == {error: 1}
    assert summary.tokens == 3


def test_a_server_that_is_not_there_is_a_connect_error() -> None:
    with EventServer() as server:
        pass
    (outcome,) = _run(server, Request({"max_tokens": 1}))
    assert outcome.error == "connect"


def test_the_key_is_sent_as_a_bearer_token() -> None:
    with EventServer() as server:
        _run(server, Request({"max_tokens": 1}), api_key="secret")
        assert b"Authorization: Bearer secret\r\n" in server.headers[0]


def test_a_load_crosses_the_process_border_and_back() -> None:
    with EventServer() as server:
        endless = Request({"max_tokens": 200_000}, cancel_after=3)
        requests = (endless, *[Request({"max_tokens": 30})] * 3)
        outcomes = load.run(Load("127.0.0.1", server.port, requests, clients=4, timeout=20), deadline=60)
    assert [outcome.cancelled for outcome in outcomes] == [True, False, False, False]
    summary = load.summarise(outcomes)
    assert (summary.requests, summary.tokens, summary.cancelled) == (4, 90, 1)


def _decoding(begin: float, end: float, count: int) -> Outcome:
    step = (end - begin) / (count - 1)
    times = tuple(begin + step * n for n in range(count))
    return Outcome(0, 0.0, end, tokens=count, events=count, times=times)


def test_the_steady_rate_counts_only_while_every_stream_decodes() -> None:
    early, late = _decoding(0.0, 10.0, 101), _decoding(5.0, 15.0, 201)
    assert load.steady_rate([early, late]) == pytest.approx(30, rel=0.02)
    assert load.steady_rate([early, _decoding(11.0, 12.0, 5)]) is None


def test_the_whole_rate_is_of_all_tokens_in_all_the_time() -> None:
    outcomes = [_decoding(0.0, 10.0, 101), _decoding(11.0, 12.0, 5)]
    assert load.whole_rate(outcomes) == pytest.approx(106 / 12)


def test_the_steady_rate_counts_tokens_not_events() -> None:
    stream = attrs.evolve(_decoding(0.0, 10.0, 101), tokens=202)
    assert load.steady_rate([stream]) == pytest.approx(20, rel=0.02)
