"""The parameter `guidance`, as the runtime gets it."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_serving.actors.errors import CallerError
from mlx_serving.actors.messages.values import Guidance
from mlx_serving.frontends.stdio.parameters import read
from mlx_serving.frontends.stdio.requests import PROMPT, generation

ASKED = {"model_id": "tiny", "prompt": "hi"}


def held_to(guidance: Any) -> Guidance | None:
    return generation(read({**ASKED, "guidance": guidance}, PROMPT), "tiny", 64).guidance


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        ({"mode": "json_object"}, Guidance("json_object", "", "guidance")),
        (
            {"mode": "json_schema", "schema": {"b": 1, "a": 2}},
            Guidance("json_schema", '{"b":1,"a":2}', "guidance.schema"),
        ),
        ({"mode": "json_schema", "schema": "true"}, Guidance("json_schema", "true", "guidance.schema")),
        ({"mode": "json_schema", "schema": False}, Guidance("json_schema", "false", "guidance.schema")),
        ({"mode": "regex", "schema": "a+"}, Guidance("regex", "a+", "guidance.schema")),
        ({"mode": "choice", "schema": ["ja", "nö"]}, Guidance("choice", '["ja","nö"]', "guidance.schema")),
        ({"mode": "grammar", "schema": 'start: "a"'}, Guidance("grammar", 'start: "a"', "guidance.schema")),
    ],
)
def test_every_mode_becomes_guidance(given: Any, expected: Guidance | None) -> None:
    assert held_to(given) == expected


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ("json", "guidance"),
        ({"schema": {}}, "guidance.mode"),
        ({"mode": "calls", "schema": "a"}, "guidance.mode"),
        ({"mode": "json_object", "schema": {}}, "guidance.schema"),
        ({"mode": "json_schema", "schema": 5}, "guidance.schema"),
        ({"mode": "regex", "schema": ["a"]}, "guidance.schema"),
        ({"mode": "regex"}, "guidance.schema"),
        ({"mode": "choice", "schema": []}, "guidance.schema"),
        ({"mode": "regex", "schema": "a", "strict": True}, "guidance.strict"),
    ],
)
def test_anything_else_is_refused_by_its_name(given: Any, field: str) -> None:
    with pytest.raises(CallerError) as caught:
        held_to(given)
    assert caught.value.field == field
