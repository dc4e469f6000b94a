"""Kinds of JSON value: each checks a value without coercion and describes itself as JSON Schema.

The parser and the OpenAPI document both read these, so neither can promise what the other does not keep.
`check` returns the value in our terms; what is wrong goes to `problems`, and the result then means nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, Protocol

import attrs

from mlx_serving.frontends.http.problems import Problems, inside, shown

Schema = dict[str, Any]

LARGEST_TOKEN_ID = 2**32 - 1


class Kind(Protocol):
    """A kind of JSON value. `wants` completes the sentence "must be …"."""

    @property
    def wants(self) -> str: ...

    @property
    def json_type(self) -> type: ...

    def check(self, value: Any, path: str, problems: Problems) -> Any: ...

    def schema(self) -> Schema: ...


def _refuse(kind: Kind, value: Any, path: str, problems: Problems) -> Any:
    problems.add(path, f"must be {kind.wants}, got {shown(value)}")
    return value


@attrs.frozen
class Text:
    """A string. Lengths in characters."""

    shortest: int = 0
    longest: int | None = None

    json_type = str

    @property
    def wants(self) -> str:
        if self.longest is not None:
            return f"a string of {self.shortest} to {self.longest} characters"
        return "a string that is not empty" if self.shortest else "a string"

    def check(self, value: Any, path: str, problems: Problems) -> Any:
        if type(value) is not str or len(value) < self.shortest or len(value) > (self.longest or len(value)):
            return _refuse(self, value, path, problems)
        return value

    def schema(self) -> Schema:
        schema: Schema = {"type": "string"}
        if self.shortest:
            schema["minLength"] = self.shortest
        if self.longest is not None:
            schema["maxLength"] = self.longest
        return schema


@attrs.frozen
class Whole:
    """An integer; a boolean or 1.0 is none. Bounds are inclusive."""

    least: int
    most: int

    json_type = int

    @property
    def wants(self) -> str:
        return f"an integer from {self.least} to {self.most}"

    def check(self, value: Any, path: str, problems: Problems) -> Any:
        if type(value) is not int or not self.least <= value <= self.most:
            return _refuse(self, value, path, problems)
        return value

    def schema(self) -> Schema:
        return {"type": "integer", "minimum": self.least, "maximum": self.most}


@attrs.frozen
class Real:
    """A number, returned as float. Bounds are inclusive, but the lower one not if `above`."""

    least: float
    most: float
    above: bool = False

    json_type = float

    @property
    def wants(self) -> str:
        if self.above:
            return f"a number above {self.least:g} and at most {self.most:g}"
        return f"a number from {self.least:g} to {self.most:g}"

    def check(self, value: Any, path: str, problems: Problems) -> Any:
        if type(value) not in (int, float) or not self.least <= value <= self.most:
            return _refuse(self, value, path, problems)
        if self.above and value == self.least:
            return _refuse(self, value, path, problems)
        return float(value)

    def schema(self) -> Schema:
        return {
            "type": "number",
            "exclusiveMinimum" if self.above else "minimum": self.least,
            "maximum": self.most,
        }


@attrs.frozen
class Flag:
    """true or false."""

    json_type = bool
    wants = "true or false"

    def check(self, value: Any, path: str, problems: Problems) -> Any:
        if type(value) is not bool:
            return _refuse(self, value, path, problems)
        return value

    def schema(self) -> Schema:
        return {"type": "boolean"}


@attrs.frozen
class Choice:
    """One of some strings."""

    options: tuple[str, ...]

    json_type = str

    @property
    def wants(self) -> str:
        return "one of " + ", ".join(self.options)

    def check(self, value: Any, path: str, problems: Problems) -> Any:
        if type(value) is not str or value not in self.options:
            return _refuse(self, value, path, problems)
        return value

    def schema(self) -> Schema:
        return {"type": "string", "enum": list(self.options)}


@attrs.frozen
class ListOf:
    """A list, returned as tuple."""

    item: Kind
    shortest: int = 0
    longest: int | None = None

    json_type = list

    @property
    def wants(self) -> str:
        if self.longest is not None:
            return f"a list of {self.shortest} to {self.longest} items"
        return "a list that is not empty" if self.shortest else "a list"

    def check(self, value: Any, path: str, problems: Problems) -> Any:
        if type(value) is not list or not self.shortest <= len(value) <= (self.longest or len(value)):
            return _refuse(self, value, path, problems)
        checked = []
        for position, item in enumerate(value):
            checked.append(self.item.check(item, f"{path}[{position}]", problems))
            if problems.is_full:
                break
        return tuple(checked)

    def schema(self) -> Schema:
        schema: Schema = {"type": "array", "items": self.item.schema()}
        if self.shortest:
            schema["minItems"] = self.shortest
        if self.longest is not None:
            schema["maxItems"] = self.longest
        return schema


@attrs.frozen
class TokenIds:
    """A list of token ids, returned as the list it is: millions of them are checked at the speed of C."""

    shortest: int = 0
    longest: int | None = None

    json_type = list

    @property
    def wants(self) -> str:
        return "a list of token ids that is not empty" if self.shortest else "a list of token ids"

    def check(self, value: Any, path: str, problems: Problems) -> Any:
        if type(value) is not list or not self.shortest <= len(value) <= (self.longest or len(value)):
            return _refuse(self, value, path, problems)
        if value and not self._are_ids(value):
            ListOf(Whole(0, LARGEST_TOKEN_ID)).check(value, path, problems)
        return value

    def _are_ids(self, value: list[Any]) -> bool:
        return set(map(type, value)) == {int} and min(value) >= 0 and max(value) <= LARGEST_TOKEN_ID

    def schema(self) -> Schema:
        return ListOf(Whole(0, LARGEST_TOKEN_ID), self.shortest, self.longest).schema()


@attrs.frozen
class AnyOf:
    """Whichever of some kinds has the value's JSON type; the kinds' types differ."""

    kinds: tuple[Kind, ...]

    json_type = object

    @property
    def wants(self) -> str:
        return " or ".join(kind.wants for kind in self.kinds)

    def check(self, value: Any, path: str, problems: Problems) -> Any:
        for kind in self.kinds:
            if type(value) is kind.json_type:
                return kind.check(value, path, problems)
        return _refuse(self, value, path, problems)

    def schema(self) -> Schema:
        return {"anyOf": [kind.schema() for kind in self.kinds]}


@attrs.frozen
class Neutral:
    """A parameter of the API that is not offered: only values that ask for nothing are let in."""

    values: tuple[Any, ...] = ()

    json_type = object

    @property
    def wants(self) -> str:
        return " or ".join(["left out", *(shown(value) for value in self.values)])

    def check(self, value: Any, path: str, problems: Problems) -> Any:
        if not any(type(value) is type(neutral) and value == neutral for neutral in self.values):
            problems.refuse(path, "is not supported by this server")
        return None

    def schema(self) -> Schema:
        return {"enum": list(self.values)}


@attrs.frozen
class Parameter:
    """A named member of an object. null means the same as leaving it out."""

    name: str
    kind: Kind
    doc: str = ""
    required: bool = False

    def schema(self) -> Schema:
        schema = self.kind.schema()
        if not self.required:
            schema = _or_null(schema)
        return {**schema, "description": self.doc} if self.doc else schema


def _or_null(schema: Schema) -> Schema:
    if "anyOf" in schema:
        return {"anyOf": [*schema["anyOf"], {"type": "null"}]}
    if "type" not in schema:
        return {"enum": [*schema["enum"], None]}
    nullable = {**schema, "type": [schema["type"], "null"]}
    if "enum" in schema:
        nullable["enum"] = [*schema["enum"], None]
    return nullable


@attrs.frozen
class Object:
    """A JSON object with these members and no others, returned as a dict of the members that were given."""

    members: tuple[Parameter, ...]

    json_type = dict
    wants = "an object"

    def check(self, value: Any, path: str, problems: Problems) -> Any:
        if type(value) is not dict:
            _refuse(self, value, path or "body", problems)
            return {}
        self._refuse_unknown(value, path, problems)
        checked: dict[str, Any] = {}
        for member in self.members:
            given = value.get(member.name)
            if given is not None:
                checked[member.name] = member.kind.check(given, inside(path, member.name), problems)
            elif member.required:
                problems.add(inside(path, member.name), f"is required and must be {member.kind.wants}")
        return checked

    def _refuse_unknown(self, value: dict[str, Any], path: str, problems: Problems) -> None:
        names = [member.name for member in self.members]
        for unknown in (name for name in value if name not in names):
            problems.refuse(inside(path, unknown), "unknown parameter" + _did_you_mean(unknown, names))
            if problems.is_full:
                break

    def schema(self) -> Schema:
        schema: Schema = {
            "type": "object",
            "properties": {member.name: member.schema() for member in self.members},
            "additionalProperties": False,
        }
        if required := [member.name for member in self.members if member.required]:
            schema["required"] = required
        return schema


def _did_you_mean(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name[:64], names, n=1)
    return f", did you mean {near[0]}?" if near else ""
