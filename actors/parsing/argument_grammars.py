"""Grammars of arguments in formats that do not write them as JSON."""

from __future__ import annotations

import json
from typing import Any

from mlx_serving.actors.parsing.grammar_rules import Rules, any_of, text
from mlx_serving.actors.parsing.typed_values import declared_types

Schema = Any

_INTEGER = "-?(0|[1-9][0-9]*)"
_SCALARS = {
    "integer": f"/{_INTEGER}/",
    "number": rf"/{_INTEGER}(\.[0-9]+)?([eE][-+]?[0-9]+)?/",
    "boolean": '"true" | "false"',
    "null": '"null"',
}


def properties_of(schema: Schema) -> tuple[dict[str, Any], list[str]]:
    """The schemas of the members, and the names of those that must be there."""
    return schema.get("properties") or {}, schema.get("required") or []


def bare_value(rules: Rules, schema: Schema, whole: Schema, strict: bool, end: str, after: str = "") -> str:
    """A value as bare text up to the marker `end`, then the text `after`.

    A string stands as it is; of what its schema says only the values that it lists are held to. `whole` has the
    definitions that `schema` may refer to.
    """
    listed = _listed(schema)
    if listed and all(isinstance(each, str) for each in listed):
        return f"{any_of([text(each) for each in listed])} {rules.mark(end)} {text(after)}"
    if not isinstance(schema, dict) or declared_types(schema) == {"string"}:
        return rules.until(end, after)
    definitions = {key: whole[key] for key in ("$defs", "definitions") if key in whole}
    return f"{rules.json({**definitions, **schema}, strict)} {rules.mark(end)} {text(after)}"


def _listed(schema: Schema) -> list[Any]:
    if not isinstance(schema, dict):
        return []
    return [schema["const"]] if "const" in schema else list(schema.get("enum") or ())


def gemma_value(rules: Rules, schema: Schema, quote: str) -> str:
    """A value of the declared types in Gemma's notation: strings between marks, keys bare."""
    schema = schema if isinstance(schema, dict) else {}
    mark = rules.mark(quote)
    if listed := _listed(schema):
        return rules.add(" | ".join(_gemma_constant(each, mark) for each in listed))
    types = declared_types(schema) or {"string", *_SCALARS}
    options = [_SCALARS[kind] for kind in sorted(types) if kind in _SCALARS]
    if "string" in types:
        options.append(f"{mark} {rules.until(quote)}")
    if "array" in types:
        item = gemma_value(rules, schema.get("items"), quote)
        options.append(f'"[" ({item} ("," {item})*)? "]"')
    if "object" in types:
        options.append(gemma_object(rules, schema, quote))
    return rules.add(" | ".join(options))


def _gemma_constant(value: Any, mark: str) -> str:
    return f"{mark} {text(value)} {mark}" if isinstance(value, str) else text(json.dumps(value))


def gemma_object(rules: Rules, schema: Schema, quote: str) -> str:
    """Members in the order of the schema, the required ones always; a comma only between two."""
    properties, required = properties_of(schema)
    leading, further = "", ""
    for key, value in reversed(properties.items()):
        member = rules.add(f"{text(key + ':')} {gemma_value(rules, value, quote)}")
        if key in required:
            leading = rules.add(f"{member} {further}")
            further = rules.add(f'"," {member} {further}')
        else:
            leading = rules.add(f"{member} {further} | {leading}" if leading else f"({member} {further})?")
            further = rules.add(f'("," {member})? {further}')
    return f'"{{" {leading} "}}"'
