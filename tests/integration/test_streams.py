"""Streams through the whole runtime: delivery, cancellation, slow readers, limits."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.server import Server
from support.sse import EventStream, text_of
from support.wait import until

pytestmark = pytest.mark.integration


def body(tokens: int, prompt: str = "a b c", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "temperature": 0, **more}


def streamed(server: Server, tokens: int, **more: Any) -> list[dict[str, Any]]:
    with EventStream(server.url, "/v1/completions", body(tokens, **more)) as stream:
        return list(stream.events())


def metric(server: Server, name: str, **labels: str) -> float:
    """The sum over all samples of a metric that carry these labels."""
    text = str(server.get("/metrics")[1])
    total = 0.0
    for line in text.splitlines():
        if re.match(rf"{name}(\{{|\s)", line) and all(f'{key}="{value}"' in line for key, value in labels.items()):
            total += float(line.rsplit(" ", 1)[1])
    return total


def active(server: Server) -> int:
    return int(server.get("/health")[1]["active_streams"])


def test_a_streamed_answer_equals_the_whole_one(scripted: Server) -> None:
    whole = scripted.post("/v1/completions", body(40))[1]
    events = streamed(scripted, 40, stream_options={"include_usage": True})
    assert text_of(events) == whole["choices"][0]["text"]
    assert events[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] == 40


def test_counters_equal_known_traffic(scripted: Server) -> None:
    names = ("requests_total", "prompt_tokens_total", "completion_tokens_total")
    before = {name: metric(scripted, f"mlx_serving_{name}") for name in names}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: scripted.post("/v1/completions", body(10))[1], range(24)))
    prompts = sum(answer["usage"]["prompt_tokens"] for answer in answers)

    def grown() -> dict[str, float]:
        return {name: metric(scripted, f"mlx_serving_{name}") - before[name] for name in names}

    until(lambda: grown()["requests_total"] == 24, what="24 requests")
    assert grown() == {"requests_total": 24, "prompt_tokens_total": prompts, "completion_tokens_total": 240}


def test_many_streams_at_once_are_all_complete(scripted: Server) -> None:
    alone = text_of(streamed(scripted, 50, seed=5))
    with ThreadPoolExecutor(40) as pool:
        texts = list(pool.map(lambda _: text_of(streamed(scripted, 50, seed=5)), range(80)))
    assert set(texts) == {alone}


def test_a_client_that_hangs_up_is_cancelled(scripted: Server) -> None:
    cancelled = metric(scripted, "mlx_serving_requests_total", outcome="cancelled")
    stream = EventStream(scripted.url, "/v1/completions", body(4000))
    stream.next_event()
    stream.close()
    until(lambda: active(scripted) == 0, what="no active stream")
    until(
        lambda: metric(scripted, "mlx_serving_requests_total", outcome="cancelled") == cancelled + 1,
        what="a cancelled request",
    )


def test_a_reader_that_stops_pauses_alone_and_gets_everything(scripted: Server) -> None:
    expected = text_of(streamed(scripted, 2000))
    resume = threading.Event()

    def slow() -> str:
        with EventStream(scripted.url, "/v1/completions", body(2000)) as stream:
            events = [stream.next_event()]
            assert resume.wait(120)
            events += list(stream.events())
            return text_of(events)

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(slow)
        until(lambda: active(scripted) == 1, what="the slow stream")
        neighbours = [text_of(streamed(scripted, 200)) for _ in range(2)]
        resume.set()
        assert reader.result(120) == expected
    assert len(set(neighbours)) == 1


def test_a_deadline_ends_a_request_with_its_own_error(scripted: Server) -> None:
    status, answer = scripted.post("/v1/completions", body(5000, timeout=0.3))
    assert status == 504
    assert answer["error"]["code"] == "deadline_exceeded"
    until(lambda: active(scripted) == 0, what="no active stream")


def test_a_prompt_over_the_context_is_refused_and_disturbs_nothing(scripted: Server) -> None:
    with EventStream(scripted.url, "/v1/completions", body(500)) as stream:
        stream.next_event()
        status, answer = scripted.post("/v1/completions", body(5, prompt="word " * 9000))
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
        status, answer = scripted.post("/v1/completions", body(5, prompt=""))
        assert (status, answer["error"]["param"]) == (400, "prompt")
        assert len(list(stream.events())) > 1


def test_an_unknown_model_is_404_with_near_names(scripted: Server) -> None:
    status, answer = scripted.post("/v1/completions", {**body(5), "model": "smollm2-135"})
    assert status == 404
    assert "smollm2-135m" in answer["error"]["message"]


def test_several_choices_come_from_one_request(scripted: Server) -> None:
    answer = scripted.post("/v1/completions", body(7, n=3))[1]
    assert sorted(choice["index"] for choice in answer["choices"]) == [0, 1, 2]
    assert answer["usage"]["completion_tokens"] == 21


def test_random_cancellations_leave_nothing_behind(scripted: Server) -> None:
    def one(number: int) -> None:
        stream = EventStream(scripted.url, "/v1/completions", body(20 + number % 50))
        if number % 3 == 0:
            stream.close()
        elif number % 3 == 1:
            stream.next_event()
            stream.close()
        else:
            list(stream.events())
            stream.close()

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(150)))
    until(lambda: active(scripted) == 0, what="no active stream")
    health = scripted.get("/health")[1]
    assert health["queue"]["waiting"] == 0
    assert text_of(streamed(scripted, 10)) != ""
