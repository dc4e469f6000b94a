"""What answers are held to in tests."""

from __future__ import annotations

from typing import Any

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def chain(length: int) -> dict[str, Any]:
    """A schema whose definitions lead from one to the next."""
    definitions: dict[str, Any] = {
        f"d{place}": {"type": "object", "properties": {"x": {"$ref": f"#/$defs/d{place + 1}"}}}
        for place in range(length)
    }
    return {"$defs": {**definitions, f"d{length}": {"type": "string"}}, "$ref": "#/$defs/d0"}


def nested(depth: int) -> dict[str, Any]:
    """A schema of lists in lists."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema
