"""Structured output from the real model, through the official OpenAI client and the command line, unchanged."""

from __future__ import annotations

import datetime
import json
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field
from support.server import COMMAND, Server, environment

pytestmark = [pytest.mark.integration, pytest.mark.model]

QUESTION: list[Any] = [{"role": "user", "content": "Describe the city of Paris in JSON."}]


class Climate(Enum):
    MILD = "mild"
    HOT = "hot"


class River(BaseModel):
    name: str = Field(max_length=20)
    length: int | None = Field(ge=0, le=10_000)


class Place(BaseModel):
    """Nested, with unions, enums and dates: what pydantic makes of them must be understood."""

    kind: Literal["city", "village"]
    name: str = Field(max_length=30)
    founded: datetime.date
    climate: Climate
    rivers: list[River] = Field(max_length=1)
    population: int = Field(ge=0, le=10**8)


def test_parse_gives_an_instance_of_a_pydantic_model(client: openai.OpenAI, model: str) -> None:
    def ask(seed: int) -> Place | None:
        answer = client.chat.completions.parse(
            model=model, messages=QUESTION, response_format=Place, max_tokens=150, temperature=0.7, seed=seed
        )
        assert answer.choices[0].finish_reason == "stop"
        return answer.choices[0].message.parsed

    with ThreadPoolExecutor(2) as pool:
        places = list(pool.map(ask, (1, 2)))
    assert all(isinstance(place, Place) for place in places)


def test_the_streaming_helper_parses_too(client: openai.OpenAI, model: str) -> None:
    with client.chat.completions.stream(
        model=model, messages=QUESTION, response_format=River, max_tokens=100, temperature=0
    ) as stream:
        answer = stream.get_final_completion()
    assert isinstance(answer.choices[0].message.parsed, River)


def test_json_object_gives_an_object(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, response_format={"type": "json_object"}, max_tokens=200, seed=1
    )
    choice = answer.choices[0]
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content or ""), dict)
    else:
        assert (choice.message.content or "").startswith("{")


def test_expressions_choices_and_grammars_bind_completions(client: openai.OpenAI, model: str) -> None:
    def ask(**structured: object) -> str:
        body = {"structured_outputs": structured}
        return client.completions.create(model=model, prompt="One:", max_tokens=30, extra_body=body).choices[0].text

    assert re.fullmatch(r"[A-Z][a-z]{2,8}", ask(regex="[A-Z][a-z]{2,8}"))
    assert ask(choice=["north", "south"]) in ("north", "south")
    assert re.fullmatch(r"(ab){1,9}", ask(grammar='root ::= "ab" | "ab" "ab" | "ab" "ab" "ab"'))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"properties": {"tags": {"type": "array", "uniqueItems": True}}}, "#/properties/tags/uniqueItems"),
        ({"oneOf": [{"type": "string"}, {"minLength": 2}]}, "#/oneOf"),
    ],
)
def test_what_cannot_be_enforced_is_a_400_that_names_it(
    client: openai.OpenAI, model: str, schema: dict[str, Any], named: str, stream: bool
) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=model, messages=QUESTION, response_format=form, stream=stream)
    assert named in refused.value.message
    assert refused.value.code == "invalid_guidance"
    assert refused.value.param == "response_format.json_schema.schema"


def test_the_command_line_takes_a_schema_from_a_file(server: Server, serving_home: Path, tmp_path: Path) -> None:
    file = tmp_path / "river.json"
    file.write_text(json.dumps(River.model_json_schema()), encoding="utf-8")
    done = subprocess.run(
        [*COMMAND, "generate", "--json-schema", str(file), "--seed", "1", "-n", "100", "Name a river."],
        env=environment(serving_home),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    River.model_validate_json(done.stdout)
    file.write_text('{"not": {}}', encoding="utf-8")
    done = subprocess.run(
        [*COMMAND, "generate", "--json-schema", str(file), "Name a river."],
        env=environment(serving_home),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "the keyword not at #/not is not supported" in done.stderr
