"""What can be told of guidance without compiling it: sizes, and keywords that are not supported."""

from __future__ import annotations

import json

from mlx_serving.actors.errors import GuidanceInvalid
from mlx_serving.actors.json_schema.check import prepared
from mlx_serving.actors.json_schema.walk import Node
from mlx_serving.actors.messages.values import Guidance

LONGEST_REGEX = 4096
MOST_CHOICES = 10_000
MOST_RULES = 10_000
"""Of a grammar: the compiler's recursion may be as deep."""
LARGEST_SOURCE = 1 << 20


def check(guidance: Guidance) -> None:
    """Raise GuidanceInvalid for guidance that cannot be compiled, as far as that can be told beforehand."""
    match guidance.kind:
        case "json_schema":
            schema_of(guidance)
        case "regex":
            _bound(guidance, len(guidance.source), LONGEST_REGEX, "characters")
        case "choice":
            choices_of(guidance)
        case "grammar":
            _bound(guidance, len(guidance.source), LARGEST_SOURCE, "characters")
            # Every rule has a colon, and so has every member of a schema within.
            _bound(guidance, guidance.source.count(":"), MOST_RULES, "rules")
        case "json_object" | "calls":
            pass


def schema_of(guidance: Guidance) -> Node:
    """The schema of `json_schema` and `json_object`, prepared for compiling."""
    if guidance.kind == "json_object":
        return {"type": "object"}
    _bound(guidance, len(guidance.source), LARGEST_SOURCE, "characters")
    return prepared(guidance.source, guidance.field)


def choices_of(guidance: Guidance) -> list[str]:
    """The texts of `choice`."""
    try:
        choices = json.loads(guidance.source)
    except (ValueError, RecursionError):
        choices = None
    if not isinstance(choices, list) or not choices or not all(isinstance(each, str) and each for each in choices):
        field = guidance.field
        raise GuidanceInvalid(f"{field}: a choice must be a list of strings that are not empty", field=field)
    _bound(guidance, len(choices), MOST_CHOICES, "texts")
    return choices


def _bound(guidance: Guidance, length: int, most: int, unit: str) -> None:
    if length > most:
        field = guidance.field
        raise GuidanceInvalid(f"{field}: a {guidance.kind} may have at most {most} {unit}, not {length}", field=field)
