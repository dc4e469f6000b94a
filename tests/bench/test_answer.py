"""Reading responses however they are cut."""

from __future__ import annotations

from itertools import pairwise

import orjson
from hypothesis import given
from hypothesis import strategies as st

from tools.bench.answer import Answer

_EVENTS = [
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
    {"choices": [{"index": 0, "delta": {"content": "Grüße"}, "finish_reason": None}]},
    {"choices": [{"index": 0, "delta": {"content": "\r\n0\r\n\r\n"}, "finish_reason": None}]},
    {"choices": [{"index": 1, "text": "!", "finish_reason": "stop"}]},
    {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 3}},
]
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _body() -> bytes:
    events = [b"data: " + orjson.dumps(event) + b"\n\n" for event in _EVENTS]
    return b": heartbeat\n\n" + b"".join(events) + b"data: [DONE]\n\n"


def _read(data: bytes, cuts: list[int]) -> Answer:
    answer = Answer()
    borders = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for number, (begin, end) in enumerate(pairwise(borders)):
        answer.feed(float(number), data[begin:end])
    answer.end()
    return answer


def _check(answer: Answer) -> None:
    assert answer.pieces == {0: ["Grüße", "\r\n0\r\n\r\n"], 1: ["!"]}
    assert answer.usage == {"prompt_tokens": 4, "completion_tokens": 3}
    assert answer.finish_reason == "stop"
    assert answer.done
    assert not answer.failure
    assert answer.times == sorted(answer.times)


@given(st.lists(st.integers(0, 5000), max_size=12), st.integers(1, 200))
def test_a_chunked_stream_reads_the_same_however_it_is_cut(cuts: list[int], size: int) -> None:
    body = _body()
    chunks = b"".join(_chunk(body[at : at + size]) for at in range(0, len(body), size))
    _check(_read(_HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n", cuts))


@given(st.lists(st.integers(0, 5000), max_size=12))
def test_a_stream_that_ends_with_the_connection_reads_the_same(cuts: list[int]) -> None:
    _check(_read(_HEAD + b"\r\n" + _body(), cuts))


def test_an_answer_in_one_document_is_read_at_its_end() -> None:
    document = {
        "choices": [
            {
                "message": {"role": "assistant", "content": "Yes"},
                "finish_reason": "stop",
                "logprobs": {"content": [{"token": "Yes", "logprob": -0.5}]},
            }
        ],
        "usage": {"prompt_tokens": 2, "completion_tokens": 1},
    }
    body = orjson.dumps(document)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer = _read(head + body, [])
    assert answer.pieces == {0: ["Yes"]}
    assert answer.logprobs == [{"token": "Yes", "logprob": -0.5}]
    assert answer.done


def test_an_error_in_the_middle_of_a_stream_is_a_failure() -> None:
    answer = _read(_HEAD + b'\r\ndata: {"error":{"message":"replica lost"}}\n\n', [])
    assert "replica lost" in answer.failure
    assert not answer.done
