"""Checks a JSON Schema before answers are held to it: whatever would not be enforced is refused, with its place.

`prepared` reads the source, walks every schema that can be reached from the root and gives the schema as it is
compiled: dialect named in full, keywords that restrict nothing taken out, dates and times spelt as patterns.
Sizes are bounded so that compiling ends soon and within the stack of a thread. Pure: text in, schema or error out.
"""

from __future__ import annotations

import json
import re
from fractions import Fraction
from typing import NoReturn
from urllib.parse import quote

from mlx_serving.actors.errors import GuidanceInvalid
from mlx_serving.actors.json_schema.keywords import (
    COMPANIONS,
    DIALECTS,
    FORMAT_PATTERNS,
    FORMATS,
    HINTS,
    LIST_DIALECT,
    NAMED_SCHEMAS,
    REFUSED,
)
from mlx_serving.actors.json_schema.walk import JSON, DeadReference, Node, objects, reachable

MOST_SCHEMAS = 10_000
"""Schemas within a schema. The compiler's recursion may be as deep."""
MOST_PROPERTIES = 2000
"""Properties of one object: the time to compile them grows with their square."""
LONGEST_PATTERN = 4096
LARGEST_MULTIPLE = 10_000
"""Of `multipleOf` as a fraction: the states of its automaton."""
_LOOKAROUND = re.compile(r"(?<!\\)(?:\\\\)*\(\?<?[=!]")
_ADDRESS = "#/%~:@!$&'()*+,;=?-._"
_SHOWN = 80


def prepared(source: str, field: str) -> Node:
    """The schema to compile. Raises GuidanceInvalid that names keyword and path; `field` is the request's parameter.

    `true` and `{}` let any JSON value be said.
    """
    return _Check(field).run(source)


class _Check:
    """One schema on its way through the checks."""

    def __init__(self, field: str) -> None:
        self._field = field

    def run(self, source: str) -> Node:
        root = self._parse(source)
        self._name_dialect(root)
        try:
            for count, (path, node) in enumerate(reachable(root)):
                if count == MOST_SCHEMAS:
                    self._refuse(f"the schema has more than {MOST_SCHEMAS} schemas in it; ask for less at once")
                self._check(path, node)
        except DeadReference as error:
            self._refuse(str(error))
        return root

    def _refuse(self, problem: str) -> NoReturn:
        raise GuidanceInvalid(f"{self._field}: {problem}", field=self._field)

    def _parse(self, source: str) -> Node:
        try:
            schema = json.loads(source, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            self._refuse(f"the schema is not JSON: {error}")
        if schema is False:
            self._refuse("the schema false lets nothing be said")
        if schema is True:
            return {}
        if not isinstance(schema, dict):
            self._refuse(f"a schema must be an object, true or false, not {_shown(schema)}")
        return schema

    def _name_dialect(self, root: Node) -> None:
        given = root.get("$schema")
        if given is None:
            if any(isinstance(node.get("items"), list) for _, node in objects(root)):
                root["$schema"] = LIST_DIALECT
            return
        known = re.fullmatch(r"https?://json-schema\.org/([^#]+)#?", given) if isinstance(given, str) else None
        if known is None or known[1] not in DIALECTS:
            self._refuse(f"$schema {_shown(given)} at #/$schema is not supported: draft-04 to 2020-12 are, or none")
        root["$schema"] = DIALECTS[known[1]]

    def _check(self, path: str, node: Node) -> None:
        for name in (*REFUSED, *COMPANIONS):
            if name in node:
                self._check_unenforced(path, node, name)
        self._check_format(path, node)
        self._check_sizes(path, node)
        if isinstance(node.get("$ref"), str):
            # Made by tools that take any name for a part of an address, such as `#/definitions/List<Item>`.
            node["$ref"] = quote(node["$ref"], safe=_ADDRESS)
        if "pattern" in node:
            self._check_pattern(f"{path}/pattern", node["pattern"])

    def _check_unenforced(self, path: str, node: Node, name: str) -> None:
        if name in COMPANIONS:
            is_idle = COMPANIONS[name] not in node
        else:
            is_idle = any(type(node[name]) is type(each) and node[name] == each for each in REFUSED[name])
        if not is_idle:
            self._refuse(f"the keyword {name} at {path}/{name} is not supported")
        del node[name]

    def _check_format(self, path: str, node: Node) -> None:
        """`format` restricts strings only."""
        types = node.get("type", "string")
        if "format" not in node or not (types == "string" or (isinstance(types, list) and "string" in types)):
            return
        name = node["format"]
        if not isinstance(name, str) or name not in FORMATS | HINTS:
            known = ", ".join(sorted(FORMATS))
            self._refuse(f"the format {_shown(name)} at {path}/format is not supported; these are: {known}")
        if name in HINTS:
            del node["format"]
        elif name in FORMAT_PATTERNS and isinstance(node.get("allOf", []), list):
            del node["format"]
            node["allOf"] = [*node.get("allOf", []), {"pattern": FORMAT_PATTERNS[name]}]

    def _check_sizes(self, path: str, node: Node) -> None:
        for name in NAMED_SCHEMAS:
            members = node.get(name)
            if isinstance(members, dict) and len(members) > MOST_PROPERTIES:
                self._refuse(f"{path}/{name} has more than {MOST_PROPERTIES} members")
        for pattern in node.get("patternProperties", ()):
            self._check_pattern(f"{path}/patternProperties", pattern)
        multiple = node.get("multipleOf")
        if type(multiple) in (int, float) and Fraction(str(multiple)).numerator > LARGEST_MULTIPLE:
            most = f"{LARGEST_MULTIPLE}, without the decimal point"
            self._refuse(f"multipleOf at {path}/multipleOf must be at most {most}")

    def _check_pattern(self, path: str, pattern: JSON) -> None:
        if not isinstance(pattern, str):
            self._refuse(f"the pattern at {path} must be a string, not {_shown(pattern)}")
        if len(pattern) > LONGEST_PATTERN:
            self._refuse(f"the pattern at {path} has more than {LONGEST_PATTERN} characters")
        if _LOOKAROUND.search(pattern):
            self._refuse(f"the pattern {_shown(pattern)} at {path} looks around, which is not supported")
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            # Unicode classes are known to the compiler and to most validators, though not to Python's.
            if r"\p{" not in pattern.lower():
                self._refuse(f"the pattern {_shown(pattern)} at {path} is no regular expression: {error}")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _shown(value: JSON) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
