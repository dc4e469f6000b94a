"""The schemas within a schema that take part in what it means, and where `$ref` leads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

from mlx_serving.actors.json_schema.keywords import NAMED_SCHEMAS, ONE_SCHEMA, SCHEMA_LISTS

JSON = Any
Node = dict[str, JSON]


class DeadReference(Exception):
    """A `$ref` that leads to nothing in the schema. The message says where it stands and why."""


def reachable(root: Node) -> Iterator[tuple[str, Node]]:
    """Every schema object that the root leads to, with its path. A node's members are looked at after it was given out.

    Raises DeadReference.
    """
    return _Walk(root).nodes()


class _Walk:
    def __init__(self, root: Node) -> None:
        self._root = root

    def nodes(self) -> Iterator[tuple[str, Node]]:
        pending: list[tuple[str, JSON]] = [("#", self._root)]
        seen: set[int] = set()
        while pending:
            path, node = pending.pop()
            if isinstance(node, dict) and id(node) not in seen:
                seen.add(id(node))
                yield path, node
                pending += [*_members(path, node), *self._referred(path, node)]

    def _referred(self, path: str, node: Node) -> Iterable[tuple[str, JSON]]:
        """Named by an anchor or an id it takes the rules of base addresses to find it: then all counts."""
        reference = node.get("$ref")
        if not isinstance(reference, str):
            return ()
        if reference.startswith("#/") or reference == "#":
            target = _resolved(self._root, reference)
            if target is None:
                raise DeadReference(f"$ref {reference[:80]!r} at {path}/$ref leads nowhere")
            return ((reference, target),)
        base = reference.partition("#")[0]
        if not any(each.endswith(base) for each in self._addresses):
            raise DeadReference(
                f"$ref {reference[:80]!r} at {path}/$ref is not supported: nothing is fetched from elsewhere"
            )
        return self._all_nodes

    @cached_property
    def _all_nodes(self) -> list[tuple[str, Node]]:
        return list(objects(self._root))

    @cached_property
    def _addresses(self) -> list[str]:
        """Where schemas in this one say they are; the empty address is the whole."""
        given = (node.get(name) for _, node in self._all_nodes for name in ("$id", "id"))
        return ["", *(each.partition("#")[0] for each in given if isinstance(each, str))]


def objects(root: JSON) -> Iterator[tuple[str, Node]]:
    """Every JSON object in the source, schema or not."""
    pending: list[tuple[str, JSON]] = [("#", root)]
    while pending:
        path, each = pending.pop()
        if isinstance(each, dict):
            yield path, each
            pending += [(f"{path}/{_escaped(key)}", value) for key, value in each.items()]
        elif isinstance(each, list):
            pending += [(f"{path}/{place}", value) for place, value in enumerate(each)]


def _members(path: str, node: Node) -> Iterator[tuple[str, JSON]]:
    for name in ONE_SCHEMA:
        if name in node:
            yield f"{path}/{name}", node[name]
    for name in SCHEMA_LISTS:
        if isinstance(node.get(name), list):
            yield from ((f"{path}/{name}/{place}", each) for place, each in enumerate(node[name]))
    for name in NAMED_SCHEMAS:
        if isinstance(node.get(name), dict):
            yield from ((f"{path}/{name}/{_escaped(key)}", each) for key, each in node[name].items())


def _resolved(root: Node, pointer: str) -> JSON | None:
    """What a JSON pointer such as `#/$defs/a` leads to."""
    found: JSON = root
    for token in pointer.split("/")[1:]:
        token = re.sub(r"%([0-9A-Fa-f]{2})", lambda match: chr(int(match[1], 16)), token)
        token = token.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and token in found:
            found = found[token]
        elif isinstance(found, list) and token.isdecimal() and int(token) < len(found):
            found = found[int(token)]
        else:
            return None
    return found


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
