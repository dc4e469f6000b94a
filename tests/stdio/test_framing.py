from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.frontends.stdio.framing import Framer, Incoming, Malformed, Oversize

LIMIT = 2000

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
bodies = st.builds(lambda value: json.dumps({"v": value}).encode(), values)
noise = st.binary(max_size=60).map(lambda data: data.replace(b"\n", b"").replace(b":", b""))


def framed(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def fed(pieces: list[bytes], limit: int = LIMIT) -> list[Incoming]:
    framer = Framer(limit, 65_000)
    return [incoming for piece in pieces for incoming in framer.feed(piece)] + framer.end()


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(edges)]


def complete(incoming: list[Incoming]) -> list[bytes]:
    return [each for each in incoming if isinstance(each, bytes)]


places = st.lists(st.integers(0, 10**6), max_size=12)


@given(st.lists(bodies, max_size=6), places)
def test_lines_come_out_whole_however_they_are_cut(messages: list[bytes], where: list[int]) -> None:
    stream = b"".join(body + b"\r\n" for body in messages)
    assert fed(cut(stream, where)) == messages


@given(st.lists(bodies, max_size=6), places)
def test_framed_messages_come_out_whole_however_they_are_cut(messages: list[bytes], where: list[int]) -> None:
    stream = b"".join(framed(body) for body in messages)
    assert fed(cut(stream, where)) == messages


@given(st.lists(bodies | noise, max_size=6), places, st.integers(8, 200))
def test_where_the_stream_is_cut_changes_nothing_for_lines(lines: list[bytes], where: list[int], limit: int) -> None:
    stream = b"{}\n" + b"\n".join(lines)
    assert fed(cut(stream, where), limit) == fed([stream], limit)


@given(st.lists(bodies.map(framed) | noise, max_size=6), places, st.integers(8, 200))
def test_where_the_stream_is_cut_changes_nothing_for_framed_messages(
    parts: list[bytes], where: list[int], limit: int
) -> None:
    stream = framed(b"{}") + b"".join(parts)
    assert fed(cut(stream, where), limit) == fed([stream], limit)


@given(st.lists(st.tuples(noise, bodies), min_size=1, max_size=5), places)
def test_framed_messages_survive_noise_between_them(parts: list[tuple[bytes, bytes]], where: list[int]) -> None:
    stream = framed(b"{}") + b"".join(garbage + framed(body) for garbage, body in parts)
    incoming = fed(cut(stream, where))
    assert complete(incoming) == [b"{}", *(body for _, body in parts)]
    assert len(incoming) <= 1 + 2 * len(parts)


@pytest.mark.parametrize("broken", [b"Content-Length: x\r\n\r\n", b"X-Name: 1\r\n\r\n", b"X" * 9000 + b"\n", b"\0\n"])
def test_a_broken_header_is_reported_once_and_skipped(broken: bytes) -> None:
    stream = framed(b"[1]") + broken + framed(b"[2]")
    first, problem, second = fed([stream])
    assert (first, second) == (b"[1]", b"[2]")
    assert isinstance(problem, Malformed)


def test_the_first_byte_chooses_the_framing() -> None:
    framer = Framer(LIMIT, 100)
    assert framer.feed(b" \r\n") == []
    assert framer.feed(b"content-length:2\n\n{}") == [b"{}"]
    assert framer.line_limit is None
    assert framer.encode(b"{}") == b"Content-Length: 2\r\n\r\n{}"
    framer = Framer(LIMIT, 100)
    assert framer.feed(b"{}\n\n") == [b"{}"]
    assert framer.line_limit == 100
    assert framer.encode(b"{}") == b"{}\n"


def test_other_headers_are_allowed() -> None:
    assert fed([b"Content-Type: application/json\r\nCONTENT-LENGTH : 2\r\n\r\n{}"]) == [b"{}"]


def test_a_last_line_without_its_end_counts() -> None:
    assert fed([b'{"a":1}\n{"b":2}']) == [b'{"a":1}', b'{"b":2}']


def test_a_stream_that_ends_within_a_framed_message_is_reported() -> None:
    assert [type(each) for each in fed([b"Content-Length: 9\r\n\r\n{}"])] == [Malformed]


HUGE = "x" * 5000


@pytest.mark.parametrize(
    ("message", "request_id"),
    [
        ({"jsonrpc": "2.0", "id": 7, "method": "m", "params": {"text": HUGE}}, 7),
        ({"method": "m", "params": {"text": HUGE, "id": 5}, "id": "last", "jsonrpc": "2.0"}, "last"),
        ({"method": "m", "params": {"text": HUGE}, "id": 0}, 0),
        ({"method": "m", "params": {"text": HUGE + ',"id":5}'}}, None),
        ({"method": "m", "params": {"text": HUGE, "id": 5}}, None),
        ({"id": None, "params": HUGE}, None),
        ({"id": HUGE}, None),
    ],
)
@pytest.mark.parametrize("headers", [False, True])
def test_the_id_of_an_oversize_message_is_read_where_it_stands(
    message: object, request_id: object, headers: bool
) -> None:
    body = json.dumps(message).encode()
    stream = framed(body) + framed(b"[1]") if headers else body + b"\n[1]\n"
    assert fed([stream]) == [Oversize(LIMIT, request_id), b"[1]"]  # type: ignore[arg-type]
    assert fed([stream[at : at + 7] for at in range(0, len(stream), 7)]) == fed([stream])


def test_an_oversize_message_is_not_kept() -> None:
    framer = Framer(LIMIT, 100)
    framer.feed(b'{"id":1,"a":"')
    for _ in range(200):
        framer.feed(b"x" * 10_000)
    kept = framer._framing._skimmed  # type: ignore[union-attr]
    assert len(kept._head) + len(kept._tail) + len(framer._framing._line) < 80_000  # type: ignore[union-attr]
    assert framer.feed(b'"}\n') == [Oversize(LIMIT, 1)]
