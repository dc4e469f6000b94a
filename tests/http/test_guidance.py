"""What an answer is held to: `response_format` and `structured_outputs`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from support.fake_client import FakeClient, FakeStream

from mlx_serving.actors.errors import GuidanceInvalid, InvalidParameter, ServingError
from mlx_serving.actors.messages.values import Guidance
from mlx_serving.frontends.http.openai import Parser

Serve = Callable[..., str]
Browse = Callable[[str], httpx2.Client]

PARSER = Parser(4, 64)
CHAT = {"messages": [{"role": "user", "content": "hi"}]}
SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"const": "ü"}}, "required": ["b", "a"]}


def held_to(**body: Any) -> Guidance | None:
    (request,) = PARSER.chat({**CHAT, **body}).requests
    (other,) = PARSER.completion({"prompt": "hi", **body}).requests
    assert request.guidance == other.guidance
    return request.guidance


def refusal(**body: Any) -> ServingError:
    with pytest.raises(ServingError) as caught:
        PARSER.chat({**CHAT, **body})
    return caught.value


def test_text_holds_an_answer_to_nothing() -> None:
    assert held_to() is None
    assert held_to(response_format={"type": "text"}, structured_outputs=None) is None


def test_a_json_object_is_asked_for_in_two_ways() -> None:
    assert held_to(response_format={"type": "json_object"}) == Guidance("json_object", field="response_format")
    guidance = held_to(structured_outputs={"json_object": True})
    assert guidance == Guidance("json_object", field="structured_outputs.json_object")


@pytest.mark.parametrize("strict", [{}, {"strict": True}, {"strict": False}, {"strict": None}])
def test_a_schema_keeps_the_order_of_its_keys_strict_or_not(strict: dict[str, Any]) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, **strict}}
    guidance = held_to(response_format=form)
    assert guidance is not None
    assert (guidance.kind, guidance.field) == ("json_schema", "response_format.json_schema.schema")
    assert list(json.loads(guidance.source)["properties"]) == ["b", "a"]


@pytest.mark.parametrize(
    ("structured", "kind", "source"),
    [
        ({"json": True}, "json_schema", "true"),
        ({"json": '{"type": "null"}'}, "json_schema", '{"type": "null"}'),
        ({"regex": "a+"}, "regex", "a+"),
        ({"choice": ["ja", "nein"]}, "choice", '["ja","nein"]'),
        ({"grammar": 'root ::= "a"', "regex": None}, "grammar", 'root ::= "a"'),
    ],
)
def test_structured_outputs_have_one_member(structured: dict[str, Any], kind: str, source: str) -> None:
    guidance = held_to(structured_outputs=structured)
    assert guidance is not None
    assert (guidance.kind, guidance.source) == (kind, source)
    assert guidance.field.startswith("structured_outputs.")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"response_format": "json_object"}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": []}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format.json_schema.name",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": "{}"}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "json_object", "schema": {}}}, "response_format.schema"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        ({"guided_json": {}}, "guided_json"),
        ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ],
)
def test_anything_else_is_refused_by_its_name(body: dict[str, Any], field: str) -> None:
    assert refusal(**body).field == field


def test_a_schema_nested_beyond_reason_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(400):
        schema = {"items": schema}
    assert isinstance(refusal(structured_outputs={"json": schema}), InvalidParameter)


async def fail_to_compile(stream: FakeStream) -> None:
    stream.fail(GuidanceInvalid("the keyword oneOf at #/oneOf", field="structured_outputs.json"))


@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_compiled_is_a_400_even_for_a_stream(serve: Serve, browse: Browse, stream: bool) -> None:
    browser = browse(serve(FakeClient(play=fail_to_compile)))
    body = {**CHAT, "stream": stream, "structured_outputs": {"json": {"oneOf": []}}}
    answer = browser.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_guidance"
    assert answer.json()["error"]["param"] == "structured_outputs.json"


def test_a_stream_that_is_held_to_something_is_like_any_other(serve: Serve, browse: Browse) -> None:
    browser = browse(serve(FakeClient()))
    texts = []
    for body in ({}, {"response_format": {"type": "json_object"}}):
        lines = browser.post("/v1/chat/completions", json={**CHAT, "stream": True, **body}).text.splitlines()
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        texts.append([event["choices"][0]["delta"] for event in events])
    assert texts[0] == texts[1]
