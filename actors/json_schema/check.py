"""Checks a JSON Schema before answers are held to it: whatever would not be enforced is refused, with its place.

`prepared` reads the source, walks every schema that can be reached from the root and gives the schema as it is
compiled: dialect named in full, keywords that restrict nothing taken out, dates and times spelt as patterns.
Sizes are bounded so that compiling ends soon and within the stack of a thread. Pure: text in, schema or error out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import cached_property
from typing import Any, NoReturn

from mlx_serving.actors.errors import InvalidParameter
from mlx_serving.actors.json_schema.keywords import (
    COMPANIONS,
    DIALECTS,
    FORMAT_PATTERNS,
    FORMATS,
    HINTS,
    LIST_DIALECT,
    NAMED_SCHEMAS,
    ONE_SCHEMA,
    REFUSED,
    SCHEMA_LISTS,
)

JSON = Any
Node = dict[str, JSON]

MOST_SCHEMAS = 10_000
"""Schemas within a schema. The compiler's recursion may be as deep."""
MOST_PROPERTIES = 2000
"""Properties of one object: the time to compile them grows with their square."""
LONGEST_PATTERN = 4096
LARGEST_MULTIPLE = 10_000
"""Of `multipleOf` as a fraction: the states of its automaton."""
_SHOWN = 80


def prepared(source: str, field: str) -> Node:
    """The schema to compile. Raises InvalidParameter that names keyword and path; `field` is the request's parameter.

    `true` and `{}` let any JSON value be said.
    """
    return _Check(field).run(source)


class _Check:
    """One schema on its way through the checks."""

    def __init__(self, field: str) -> None:
        self._field = field

    def run(self, source: str) -> Node:
        self._root = root = self._parse(source)
        self._name_dialect(root)
        pending: list[tuple[str, JSON]] = [("#", root)]
        seen: set[int] = set()
        while pending:
            path, node = pending.pop()
            if not isinstance(node, dict) or id(node) in seen:
                continue
            seen.add(id(node))
            if len(seen) > MOST_SCHEMAS:
                self._refuse(f"the schema has more than {MOST_SCHEMAS} schemas in it; ask for less at once")
            self._check(path, node)
            pending += [*subschemas(path, node), *self._referred(path, node)]
        return root

    def _refuse(self, problem: str) -> NoReturn:
        raise InvalidParameter(f"{self._field}: {problem}", field=self._field)

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
            if any(isinstance(node.get("items"), list) for _, node in _all_nodes(root)):
                root["$schema"] = LIST_DIALECT
            return
        known = re.fullmatch(r"https?://json-schema\.org/([^#]+)#?", given) if isinstance(given, str) else None
        if known is None or known[1] not in DIALECTS:
            self._refuse(f"$schema {_shown(given)} at #/$schema is not supported: draft-04 to 2020-12 are, or none")
        root["$schema"] = DIALECTS[known[1]]

    def _check(self, path: str, node: Node) -> None:
        for name in [*REFUSED, *COMPANIONS]:
            if name in node:
                self._check_unenforced(path, node, name)
        self._check_format(path, node)
        self._check_sizes(path, node)

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
            self._refuse(
                f"the format {_shown(name)} at {path}/format is not supported; these are: {', '.join(sorted(FORMATS))}"
            )
        if name in HINTS:
            del node["format"]
        elif name in FORMAT_PATTERNS and isinstance(node.get("allOf", []), list):
            del node["format"]
            node["allOf"] = [*node.get("allOf", []), {"pattern": FORMAT_PATTERNS[name]}]

    def _check_sizes(self, path: str, node: Node) -> None:
        patterns = [(f"{path}/pattern", node.get("pattern"))]
        for name in NAMED_SCHEMAS:
            members = node.get(name)
            if isinstance(members, dict):
                if len(members) > MOST_PROPERTIES:
                    self._refuse(f"{path}/{name} has more than {MOST_PROPERTIES} members")
                if name == "patternProperties":
                    patterns += [(f"{path}/{name}", pattern) for pattern in members]
        for place, pattern in patterns:
            if isinstance(pattern, str):
                self._check_pattern(place, pattern)
        multiple = node.get("multipleOf")
        if type(multiple) in (int, float) and Fraction(str(multiple)).numerator > LARGEST_MULTIPLE:
            self._refuse(f"multipleOf at {path}/multipleOf must be at most {LARGEST_MULTIPLE}, without the decimal point")

    def _check_pattern(self, path: str, pattern: str) -> None:
        if len(pattern) > LONGEST_PATTERN:
            self._refuse(f"the pattern at {path} has more than {LONGEST_PATTERN} characters")
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            # Unicode classes are known to the compiler and to most validators, though not to Python's.
            if r"\p{" not in pattern.lower():
                self._refuse(f"the pattern {_shown(pattern)} at {path} is no regular expression: {error}")

    def _referred(self, path: str, node: Node) -> Iterable[tuple[str, JSON]]:
        """What a `$ref` leads to. By an anchor or an id that takes the rules of base addresses: then all counts."""
        reference = node.get("$ref")
        if not isinstance(reference, str):
            return ()
        if reference.startswith("#/") or reference == "#":
            target = resolved(self._root, reference)
            if target is None:
                self._refuse(f"$ref {_shown(reference)} at {path}/$ref leads nowhere")
            return ((reference, target),)
        base = reference.partition("#")[0]
        if not any(each.endswith(base) for each in self._ids):
            self._refuse(f"$ref {_shown(reference)} at {path}/$ref is not supported: nothing is fetched from elsewhere")
        return self._others

    @cached_property
    def _others(self) -> list[tuple[str, Node]]:
        return [(path, node) for path, node in _all_nodes(self._root) if path != "#"]

    @cached_property
    def _ids(self) -> list[str]:
        """Addresses that schemas in this one have; the empty one is the whole."""
        given = (node.get(name) for _, node in self._others for name in ("$id", "id"))
        return ["", *(each.partition("#")[0] for each in (*given, *map(self._root.get, ("$id", "id"))) if isinstance(each, str))]


def subschemas(path: str, node: Node) -> Iterator[tuple[str, JSON]]:
    """The schemas that stand in this one and take part in what it means, each with its path."""
    for name in ONE_SCHEMA:
        if name in node:
            yield f"{path}/{name}", node[name]
    for name in SCHEMA_LISTS:
        if isinstance(node.get(name), list):
            yield from ((f"{path}/{name}/{place}", each) for place, each in enumerate(node[name]))
    for name in NAMED_SCHEMAS:
        if isinstance(node.get(name), dict):
            yield from ((f"{path}/{name}/{_escaped(key)}", each) for key, each in node[name].items())


def resolved(root: Node, reference: str) -> JSON | None:
    """What a JSON pointer such as `#/$defs/a` leads to."""
    found: JSON = root
    for token in reference.split("/")[1:]:
        token = re.sub(r"%([0-9A-Fa-f]{2})", lambda match: chr(int(match[1], 16)), token)
        token = token.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and token in found:
            found = found[token]
        elif isinstance(found, list) and token.isdecimal() and int(token) < len(found):
            found = found[int(token)]
        else:
            return None
    return found


def _all_nodes(root: Node) -> Iterator[tuple[str, Node]]:
    """Every object in the source, whether it takes part or not."""
    pending: list[tuple[str, JSON]] = [("#", root)]
    while pending:
        path, each = pending.pop()
        if isinstance(each, dict):
            yield path, each
            pending += [(f"{path}/{_escaped(key)}", value) for key, value in each.items()]
        elif isinstance(each, list):
            pending += [(f"{path}/{place}", value) for place, value in enumerate(each)]


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _shown(value: JSON) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
