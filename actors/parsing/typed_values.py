"""Arguments that were written as bare text: which JSON value the tool's schema makes of one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mlx_serving.actors.messages.values import Tool

_WORDS = {"True": "true", "False": "false", "None": "null"}
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}


def properties_of(tools: tuple[Tool, ...]) -> dict[str, dict[str, Any]]:
    """The schemas of each tool's arguments, by the tool's name."""
    found = {}
    for tool in tools:
        properties = json.loads(tool.parameters).get("properties")
        found[tool.name] = properties if isinstance(properties, dict) else {}
    return found


def is_text(schema: Any) -> bool:
    """Whether the value can be nothing but a string."""
    return declared_types(schema) == {"string"}


def declared_types(schema: Any) -> set[str]:
    """The JSON types that a schema lets in, as far as it says; empty: it does not say."""
    if not isinstance(schema, Mapping):
        return set()
    kind = schema.get("type")
    if isinstance(kind, str):
        return {kind}
    if isinstance(kind, list):
        return {each for each in kind if isinstance(each, str)}
    if "const" in schema:
        return {_type_of(schema["const"])}
    if isinstance(schema.get("enum"), list):
        return {_type_of(each) for each in schema["enum"]}
    options = [each for key in ("anyOf", "oneOf") for each in schema.get(key) or ()]
    types = [declared_types(each) for each in options]
    return set().union(*types) if all(types) else set()


def _type_of(value: Any) -> str:
    return _TYPES.get(type(value), "null")


def as_json(text: str, schema: Any) -> str:
    """The JSON text of the value: of the declared type if it can be read as one, else a string."""
    types = declared_types(schema)
    written = _WORDS.get(text.strip(), text.strip())
    try:
        value = json.loads(written)
    except ValueError:
        return json.dumps(text, ensure_ascii=False)
    kind = _type_of(value)
    fits = not types or kind in types or (kind == "integer" and "number" in types)
    return written if fits or "string" not in types else json.dumps(text, ensure_ascii=False)
