"""The OpenAPI document, held against the server by schemathesis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from mlx_serving.frontends.http.openai import Parser
from mlx_serving.frontends.http.openapi import document

PARSER = Parser(16, 512)
DOCUMENT = document(PARSER, "1", needs_key=False)
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = [SCHEMA[path][method] for path, methods in DOCUMENT["paths"].items() for method in methods]


MODES = [
    (operation, mode)
    for operation in OPERATIONS
    for mode in schemathesis.GenerationMode
    if mode is schemathesis.GenerationMode.POSITIVE or operation.method == "post"
]


@pytest.mark.parametrize(("operation", "mode"), MODES, ids=lambda part: getattr(part, "label", None))
def test_the_server_keeps_what_its_document_promises(
    url: str, operation: Any, mode: schemathesis.GenerationMode
) -> None:
    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=mode))
    def holds(case: Any) -> None:
        case.body = as_whole(case.body)
        case.call_and_validate(base_url=url)

    holds()


def as_whole(value: Any) -> Any:
    """1.0 as 1: to JSON Schema both are integers, to this server only the second one is."""
    match value:
        case float() if value.is_integer():
            return int(value)
        case list():
            return [as_whole(item) for item in value]
        case dict():
            return {key: as_whole(item) for key, item in value.items()}
    return value


def test_every_parameter_of_the_parser_is_in_the_document(url: str) -> None:
    paths = httpx2.get(f"{url}/openapi.json").json()["paths"]
    body = paths["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert list(body["properties"]) == [member.name for member in PARSER.chat_body.members]
    assert body["properties"]["n"]["maximum"] == 16


def test_a_key_is_described_only_where_it_is_needed() -> None:
    described = document(PARSER, "1", needs_key=True)
    assert described["security"] == [{"key": []}]
    assert described["paths"]["/livez"]["get"]["security"] == []
    assert "security" not in document(PARSER, "1", needs_key=False)


def test_every_parameter_is_in_the_reference() -> None:
    reference = (Path(__file__).parents[2] / "docs" / "http.md").read_text(encoding="utf-8")
    for member in (*PARSER.chat_body.members, *PARSER.completion_body.members):
        assert f"`{member.name}`" in reference
    for path in DOCUMENT["paths"]:
        assert path in reference.replace("{id}", "{model}")
