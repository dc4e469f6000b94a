"""Streamed answers as bytes."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from support.fake_client import TIMINGS, ending

from mlx_serving.actors.errors import ReplicaLost
from mlx_serving.actors.messages.frontend import Delta
from mlx_serving.actors.messages.values import DraftCounts, TokenLogprob, ToolCallPart, Usage
from mlx_serving.frontends.http.answers import Heading
from mlx_serving.frontends.http.openai import Call, Parser
from mlx_serving.frontends.http.sse import EventEncoder, error_event

PARSER = Parser(16, 512)
LOGPROBS = (TokenLogprob(3, "a", -0.5, ((3, "a", -0.5), (4, "b", -float("inf")))),)


def chat(**body: Any) -> Call:
    return PARSER.chat({"messages": [{"role": "user", "content": "hi"}], "stream": True, **body})


def encoder(call: Call) -> EventEncoder:
    return EventEncoder(call, Heading.of(call, "tiny", "test"))


def parsed(events: bytes) -> list[Any]:
    """The data of each event; bytes that are not events fail."""
    assert not events or events.endswith(b"\n\n")
    lines = events.decode().split("\n\n")[:-1]
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


def choices(events: bytes) -> list[Any]:
    return [choice for event in parsed(events) for choice in event["choices"]]


def delta(index: int, text: str, **more: Any) -> Delta:
    return Delta(1, index, text, (1,), **more)


def test_a_chat_opens_with_the_role_of_each_choice() -> None:
    events = parsed(encoder(chat(n=2)).opening())
    assert [event["choices"][0]["index"] for event in events] == [0, 1]
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert events[0]["object"] == "chat.completion.chunk"
    assert "usage" not in events[0]


def test_a_completion_opens_with_the_echo() -> None:
    call = PARSER.completion({"prompt": ["p", "q"], "n": 2, "echo": True, "stream": True})
    assert [choice["text"] for choice in choices(encoder(call).opening())] == ["p", "p", "q", "q"]
    assert encoder(PARSER.completion({"prompt": "p"})).opening() == b""


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5))
def test_any_text_arrives_as_it_was(texts: list[str]) -> None:
    for call in (chat(), PARSER.completion({"prompt": "p"})):
        events = choices(encoder(call).deltas([delta(0, text) for text in texts]))
        given = [choice["delta"]["content"] if call.is_chat else choice["text"] for choice in events]
        assert "".join(given) == "".join(texts)


def test_deltas_of_one_choice_that_came_together_share_an_event() -> None:
    events = choices(encoder(chat(n=2)).deltas([delta(0, "a"), delta(1, "x"), delta(0, "b", end=ending("length"))]))
    assert [(choice["index"], choice["delta"], choice["finish_reason"]) for choice in events] == [
        (0, {"content": "ab"}, None),
        (1, {"content": "x"}, None),
        (0, {}, "length"),
    ]


def test_a_delta_without_a_whole_character_sends_nothing() -> None:
    assert encoder(chat()).deltas([delta(0, "")]) == b""
    assert encoder(chat()).deltas([delta(0, ""), delta(0, "")]) == b""


def test_the_last_event_of_a_choice_says_why_it_ended() -> None:
    (choice,) = choices(encoder(chat()).deltas([delta(0, "", end=ending())]))
    assert choice == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    (choice,) = choices(encoder(PARSER.completion({"prompt": "p"})).deltas([delta(0, "", end=ending())]))
    assert choice["text"] == ""


def test_logprobs_of_a_chat_come_token_by_token() -> None:
    call = chat(logprobs=True, top_logprobs=2)
    first, second = choices(encoder(call).deltas([delta(0, "a", logprobs=LOGPROBS)] * 2))
    assert first == second
    (token,) = first["logprobs"]["content"]
    assert (token["token"], token["logprob"], token["bytes"]) == ("a", -0.5, [97])
    assert [top["logprob"] for top in token["top_logprobs"]] == [-0.5, -9999.0]


def test_logprobs_of_a_completion_count_their_offset_in_the_text() -> None:
    call = PARSER.completion({"prompt": "p", "logprobs": 2, "stream": True})
    first, second = choices(encoder(call).deltas([delta(0, "a", logprobs=LOGPROBS)] * 2))
    assert first["logprobs"]["tokens"] == ["a"]
    assert first["logprobs"]["top_logprobs"] == [{"a": -0.5, "b": -9999.0}]
    assert (first["logprobs"]["text_offset"], second["logprobs"]["text_offset"]) == ([0], [1])


def test_a_part_of_a_character_has_no_bytes() -> None:
    part = (TokenLogprob(3, "\ufffd", -0.5),)
    (choice,) = choices(encoder(chat(logprobs=True)).deltas([delta(0, "", logprobs=part)]))
    assert choice["logprobs"]["content"][0]["bytes"] is None


def test_usage_comes_last_without_choices_and_only_if_asked_for() -> None:
    call = chat(stream_options={"include_usage": True})
    assert parsed(encoder(call).opening())[0]["usage"] is None
    counted = Usage(5, 4, 3, 2, DraftCounts(6, 1, 5, 0))
    usage, done = parsed(encoder(call).closing(counted, TIMINGS))
    assert (usage["choices"], done) == ([], "[DONE]")
    assert usage["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 4,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {
            "reasoning_tokens": 2,
            "accepted_prediction_tokens": 5,
            "rejected_prediction_tokens": 0,
            "accepted_draft_tokens": 6,
            "rejected_draft_tokens": 1,
        },
    }
    assert usage["timings"]["decode_seconds"] == 0.004
    assert parsed(encoder(chat()).closing(Usage(5, 4, 3), TIMINGS)) == ["[DONE]"]


def test_an_error_in_mid_stream_is_an_event() -> None:
    (event,) = parsed(error_event(ReplicaLost("gone", model="tiny")))
    assert event["error"] == {
        "message": "gone",
        "type": "service_unavailable_error",
        "param": None,
        "code": "replica_lost",
        "model": "tiny",
    }


def test_reasoning_and_calls_have_fields_of_their_own() -> None:
    begun, goes_on = ToolCallPart(0, "{", "call_1", "f"), (ToolCallPart(0, "}"), ToolCallPart(1, "", "b", "g"))
    written = encoder(chat())
    events = choices(
        written.deltas([delta(0, "", reasoning="so")])
        + written.deltas([delta(0, "", tool_calls=(begun,)), delta(0, "", tool_calls=goes_on)])
        + written.deltas([delta(0, "", tool_calls=(ToolCallPart(1, "{}"),), end=ending("tool_calls"))])
    )
    assert [(event["delta"], event["finish_reason"]) for event in events] == [
        ({"reasoning_content": "so"}, None),
        (
            {
                "tool_calls": [
                    {
                        "index": 0,
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "f", "arguments": "{}"},
                    },
                    {"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": ""}},
                ]
            },
            None,
        ),
        ({"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]}, None),
        ({}, "tool_calls"),
    ]


def test_log_probabilities_go_on_beside_reasoning_and_calls() -> None:
    events = choices(encoder(chat(logprobs=True)).deltas([delta(0, "", reasoning="so", logprobs=LOGPROBS)]))
    assert [event["delta"] for event in events] == [{"reasoning_content": "so"}, {"content": ""}]
    assert events[1]["logprobs"] is not None
