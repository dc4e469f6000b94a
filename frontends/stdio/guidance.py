"""The parameter `guidance` of `generate` and `chat`: what the answer is held to."""

from __future__ import annotations

from typing import Any

import orjson

from mlx_serving.actors.errors import InvalidParameter
from mlx_serving.actors.messages.values import Guidance, GuidanceKind
from mlx_serving.frontends.stdio.parameters import Check, Parameter, anything, choice, many, read, string, wrong

_MOST_CHOICES = 10_000


def guidance(value: Any, path: str) -> Guidance:
    """{mode, schema}: `schema` is a JSON Schema, an expression, a list of choices or a grammar, as `mode` has it."""
    given = read(value, (Parameter("mode", choice(*_SOURCES), required=True), Parameter("schema", anything)), path)
    mode: GuidanceKind = given["mode"]
    field = f"{path}.schema"
    if mode == "json_object":
        if "schema" in given:
            raise wrong(field, "left out with mode json_object", given["schema"])
        return Guidance(mode, field=path)
    if "schema" not in given:
        raise InvalidParameter(f"{field} is required with mode {mode}", field=field)
    source = _SOURCES[mode](given["schema"], field)
    return Guidance(mode, source if isinstance(source, str) else orjson.dumps(source).decode(), field)


def _schema(value: Any, path: str) -> str:
    """A JSON Schema, or its text."""
    if isinstance(value, str):
        return value
    if not isinstance(value, dict | bool):
        raise wrong(path, "a JSON Schema: an object, a boolean, or its text", value)
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError as error:
        raise InvalidParameter(f"{path}: {error}", field=path) from None


_SOURCES: dict[GuidanceKind, Check] = {
    "json_schema": _schema,
    "json_object": anything,
    "regex": string(1),
    "choice": many(string(1), shortest=1, longest=_MOST_CHOICES),
    "grammar": string(1),
}
