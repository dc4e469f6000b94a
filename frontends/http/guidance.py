"""What an answer is to be held to, as kinds of JSON value; each is returned as Guidance, or None for free text."""

from __future__ import annotations

from typing import Any

import attrs
import orjson

from mlx_serving.actors.messages.values import Guidance
from mlx_serving.frontends.http.kinds import Choice, Flag, Kind, ListOf, Object, Parameter, Schema, Text
from mlx_serving.frontends.http.problems import Problems, inside, shown

_LONGEST_NAME = 64
_MOST_CHOICES = 10_000


@attrs.frozen
class SchemaText:
    """A JSON Schema, returned as JSON text. Its keywords are looked at where answers are held to them."""

    takes_text: bool = False
    """Whether it may be JSON text already."""

    json_type = object

    @property
    def wants(self) -> str:
        return "a JSON Schema: an object or a boolean" + (", or its text" if self.takes_text else "")

    def check(self, value: Any, path: str, problems: Problems) -> str:
        if self.takes_text and type(value) is str:
            return value
        if type(value) not in (dict, bool):
            problems.add(path, f"must be {self.wants}, got {shown(value)}")
            return ""
        try:
            return orjson.dumps(value).decode()
        except orjson.JSONEncodeError as error:
            problems.add(path, f"must be {self.wants}: {error}")
            return ""

    def schema(self) -> Schema:
        return {"anyOf": [{"type": "object"}, {"type": "boolean"}, *([{"type": "string"}] if self.takes_text else ())]}


_JSON_SCHEMA = Object(
    (
        Parameter("name", Text(1, _LONGEST_NAME), "A name of yours.", required=True),
        Parameter("description", Text(), "A description of yours; not shown to the model."),
        Parameter("schema", SchemaText(), "The schema.", required=True),
        Parameter("strict", Flag(), "Answers are held to the schema either way."),
    )
)


def _typed(name: str, *members: Parameter) -> Object:
    return Object((Parameter("type", Choice((name,)), required=True), *members))


_FORMATS = {
    "text": _typed("text"),
    "json_object": _typed("json_object"),
    "json_schema": _typed("json_schema", Parameter("json_schema", _JSON_SCHEMA, required=True)),
}


@attrs.frozen
class ResponseFormat:
    """OpenAI's `response_format`."""

    json_type = dict
    wants = 'an object with a type: {"type": "text"}, {"type": "json_object"} or {"type": "json_schema", …}'

    def check(self, value: Any, path: str, problems: Problems) -> Guidance | None:
        kind = value.get("type") if type(value) is dict else None
        if type(kind) is not str or kind not in _FORMATS:
            problems.add(path, f"must be {self.wants}, got {shown(value)}")
            return None
        given = _FORMATS[kind].check(value, path, problems)
        if kind == "text":
            return None
        if kind == "json_object":
            return Guidance("json_object", field=path)
        return Guidance("json_schema", given.get("json_schema", {}).get("schema", ""), f"{path}.json_schema.schema")

    def schema(self) -> Schema:
        return {"anyOf": [form.schema() for form in _FORMATS.values()]}


_WAYS: dict[str, Kind] = {
    "json": SchemaText(takes_text=True),
    "json_object": Flag(),
    "regex": Text(1),
    "choice": ListOf(Text(1), 1, _MOST_CHOICES),
    "grammar": Text(1),
}
_STRUCTURED = Object(
    (
        Parameter("json", _WAYS["json"], "The answer is JSON that this schema lets in."),
        Parameter("json_object", _WAYS["json_object"], "The answer is a JSON object."),
        Parameter("regex", _WAYS["regex"], "The whole answer matches this regular expression."),
        Parameter("choice", _WAYS["choice"], "The answer is one of these strings."),
        Parameter("grammar", _WAYS["grammar"], "The answer is in the language of this grammar, in Lark or GBNF."),
    )
)


@attrs.frozen
class StructuredOutputs:
    """vLLM's `structured_outputs`: exactly one of its members."""

    json_type = dict
    wants = f"an object with exactly one of {', '.join(_WAYS)}"

    def check(self, value: Any, path: str, problems: Problems) -> Guidance | None:
        given = _STRUCTURED.check(value, path, problems)
        if given.get("json_object") is False:
            del given["json_object"]
        if type(value) is dict and len(given) != 1:
            problems.add(path, f"must be {self.wants}")
        for name, source in given.items():
            return _guidance(name, source, inside(path, name))
        return None

    def schema(self) -> Schema:
        ways = {**{name: kind.schema() for name, kind in _WAYS.items()}, "json_object": {"const": True}}
        return {"anyOf": [_only(name, way) for name, way in ways.items()]}


def _only(name: str, way: Schema) -> Schema:
    return {"type": "object", "properties": {name: way}, "required": [name], "additionalProperties": False}


def _guidance(name: str, source: Any, field: str) -> Guidance:
    match name:
        case "json":
            return Guidance("json_schema", source, field)
        case "json_object":
            return Guidance("json_object", field=field)
        case "choice":
            return Guidance("choice", orjson.dumps(source).decode(), field)
        case "regex":
            return Guidance("regex", source, field)
        case _:
            return Guidance("grammar", source, field)


GUIDANCE = (
    Parameter("response_format", ResponseFormat(), "Hold the answer to JSON, or to a JSON Schema."),
    Parameter("structured_outputs", StructuredOutputs(), "Hold the answer to a schema, expression, choice or grammar."),
)


def guidance(given: dict[str, Any], problems: Problems) -> Guidance | None:
    """What the answer of a checked body is held to."""
    found = [each for each in (given.get(parameter.name) for parameter in GUIDANCE) if each is not None]
    if len(found) > 1:
        problems.add("structured_outputs", "cannot be given together with response_format")
    return found[0] if found else None
