"""Schemas as people write them: each is refused by name, or every answer validates."""

from __future__ import annotations

import json
import time
from typing import Any

import jsonschema
import pytest
from conftest import kept_home
from support import schemastore
from support.random_answers import Walker

from mlx_serving.actors.errors import GuidanceInvalid
from mlx_serving.actors.generation.guidance.compiler import GuideCompiler
from mlx_serving.actors.generation.guidance.guide import Guide
from mlx_serving.actors.messages.values import Guidance

LONGEST_SECONDS = 30.0
LEAST_SCHEMAS, LEAST_TAKEN = 450, 150
LARGEST_BYTES = 40_000
"""Larger ones take most of the time; docs/structured-output.md has the figures with them."""


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    return schemastore.schemas(schemastore.fetch(kept_home() / "assets"), LARGEST_BYTES)


def validator(source: str) -> Any:
    schema = json.loads(source)
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    return kind(schema, format_checker=jsonschema.FormatChecker())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_each_is_refused_by_name_or_every_answer_validates(
    compiler: GuideCompiler, walker: Walker, sources: dict[str, str]
) -> None:
    taken = finished = 0
    for number, (name, source) in enumerate(sources.items()):
        began = time.monotonic()
        guide = compiled(compiler, name, source)
        if guide is not None:
            taken += 1
            answer = walker.answer(guide, number)
            if answer is not None:
                finished += 1
                validator(source).validate(json.loads(answer))
        assert time.monotonic() - began < LONGEST_SECONDS, name
    assert len(sources) >= LEAST_SCHEMAS
    assert taken >= LEAST_TAKEN
    assert finished >= 0.7 * taken


def compiled(compiler: GuideCompiler, name: str, source: str) -> Guide | None:
    """None if it is refused, with the place of what is not supported."""
    future = compiler.start(Guidance("json_schema", source, name))
    error = future.exception(120)
    if error is None:
        return future.result()
    assert isinstance(error, GuidanceInvalid)
    assert "#/" in error.message or " at most " in error.message or " more than " in error.message, error.message
    return None
