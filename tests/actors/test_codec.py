"""The codec on every message, and on bytes that are none."""

import contextlib
from collections.abc import Iterator

import attrs
import hypothesis.strategies as st
import msgpack
import pytest
from cattrs.dispatch import FunctionDispatch
from hypothesis import HealthCheck, given, settings

from mlx_serving.actors import codec
from mlx_serving.actors.codec import MESSAGES, decode, encode
from mlx_serving.actors.errors import ErrorInfo, ProtocolError
from mlx_serving.actors.messages.admission import (
    GenerationRequested,
    RequestCancelled,
    SequenceOutput,
    TokensGenerated,
)
from mlx_serving.actors.messages.envelope import PROTOCOL_VERSION, Envelope
from mlx_serving.actors.messages.values import (
    ChatMessage,
    Sampling,
    SequenceEnd,
    TokenLogprob,
    ToolCallPart,
    pack_ids,
    unpack_ids,
)

ENVELOPES = [
    st.builds(
        Envelope,
        st.from_type(kind),
        st.text(max_size=5),
        st.integers(0, 2**40),
        st.none() | st.floats(0, 1e9),
    )
    for kind in MESSAGES.values()
]


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.one_of(ENVELOPES))
def test_every_message_survives_the_wire(envelope: Envelope) -> None:
    try:
        frame = encode(envelope)
    except ProtocolError:
        return  # integers beyond 64 bits and lone surrogates cannot leave
    decoded = decode(frame)
    assert attrs.asdict(decoded) == attrs.asdict(envelope) or "nan" in repr(envelope)


@pytest.fixture(scope="module")
def prepared() -> Iterator[None]:
    """A codec that has seen no message yet and was prepared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "_convert", codec._converter())
        for made in (codec._reader, codec._writer):
            made.cache_clear()
        codec.prepare()
        yield


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("kind", MESSAGES.values(), ids=MESSAGES)
def test_once_prepared_no_message_makes_the_converter_look_for_anything(
    kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_for: list[object] = []
    monkeypatch.setattr(FunctionDispatch, "dispatch", lambda _, wanted: looked_for.append(wanted))

    @settings(max_examples=10)
    @given(st.builds(Envelope, st.from_type(kind), st.just("f")))
    def passes(envelope: Envelope) -> None:
        with contextlib.suppress(ProtocolError):
            decode(encode(envelope))

    passes()
    assert looked_for == []


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_protocol_error(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(frame)


@given(st.integers(0, 10_000))
def test_a_truncated_frame_is_a_protocol_error(cut: int) -> None:
    frame = encode(Envelope(GenerationRequested(1, messages=(ChatMessage("user", "hi"),)), "f"))
    with pytest.raises(ProtocolError):
        decode(frame[: cut % len(frame)])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"request_id": "3"}, "request_id"),
        ({"request_id": True}, "request_id"),
        ({"request_id": 3.0}, "request_id"),
        ({"request_id": 3, "more": 1}, "more"),
        ({}, "request_id"),
        ([3], "expected dict"),
    ],
)
def test_a_wrong_body_is_refused_with_its_field(body: object, reason: str) -> None:
    frame = msgpack.packb((PROTOCOL_VERSION, "RequestCancelled", "f", 0, None, "", body))
    with pytest.raises(ProtocolError, match=reason):
        decode(frame)


def test_an_unknown_tag_and_another_version_are_refused() -> None:
    with pytest.raises(ProtocolError, match="unknown message"):
        decode(msgpack.packb((PROTOCOL_VERSION, "SystemExit", "f", 0, None, "", {})))
    with pytest.raises(ProtocolError, match="protocol version"):
        decode(msgpack.packb((PROTOCOL_VERSION + 1, "RequestCancelled", "f", 0, None, "", {"request_id": 1})))


def test_only_messages_of_the_bus_can_be_sent() -> None:
    with pytest.raises(TypeError, match="Sampling"):
        encode(Envelope(Sampling(), "f"))


def test_a_token_frame_carries_everything() -> None:
    end = SequenceEnd("stop", 3, 2, matched="x", decode_seconds=0.5)
    top = ((7, " a", -0.5), (8, " b", -1.5))
    outputs = (
        SequenceOutput(1, "é", (7, 8), (TokenLogprob(7, " a", -0.5, top),), end),
        SequenceOutput(2, "", (), error=ErrorInfo("generation_failed", "NaN", model="m")),
        SequenceOutput(3, "", (9,), reasoning="hm", tool_calls=(ToolCallPart(0, "{", "call_1", "f"), ToolCallPart(1))),
    )
    envelope = Envelope(TokensGenerated("replica-1", outputs), "replica-1")
    assert decode(encode(envelope)) == envelope


def test_a_token_frame_with_a_wrong_item_is_refused() -> None:
    frame = msgpack.packb(
        (PROTOCOL_VERSION, "TokensGenerated", "r", 0, None, "", ("r", [(1, b"x", [], [], None, None, "", [])]))
    )
    with pytest.raises(ProtocolError, match="expected str"):
        decode(frame)


@given(st.lists(st.integers(0, 2**32 - 1), max_size=50))
def test_packed_ids_come_back(ids: list[int]) -> None:
    assert unpack_ids(pack_ids(ids)) == ids


def test_no_two_messages_share_a_tag() -> None:
    assert MESSAGES["RequestCancelled"] is RequestCancelled
    assert len({kind.__name__ for kind in MESSAGES.values()}) == len(MESSAGES)
