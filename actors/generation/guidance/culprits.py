"""Finds the keyword that a compiler's message is about when the message does not say where it stands."""

from __future__ import annotations

import copy
from collections.abc import Callable

from mlx_serving.actors.json_schema.walk import Node, reachable

_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_SIGNS: dict[str, tuple[tuple[str, ...], str]] = {
    "oneOf constraints": (("oneOf",), "it must be certain that no value matches two of its alternatives; use anyOf"),
    "min/maxProperties": (
        ("minProperties", "maxProperties"),
        "these are supported only where every member of `properties` is required",
    ),
    "patternProperty regexes": (("patternProperties",), "two of its patterns may match the same name"),
    "Failed to generate regex for": (_BOUNDS, "a bound must fit into 64 bits and have few digits"),
    "Value for 'multipleOf'": (("multipleOf",), "it has too many digits"),
    "Unable to determine if regex": (("pattern",), "this pattern cannot be combined with the lengths beside it"),
    "regex parse error": (("pattern", "patternProperties"), ""),
    "Schema intersection stack": (("allOf", "$ref"), "what it combines leads back to itself too often"),
    "circular references with sibling": (("$ref",), "it leads back to itself and has other keywords beside it"),
    "schema too large": (("allOf", "anyOf", "oneOf"), "there are too many combinations of its alternatives"),
    "lookarounds not supported": (("pattern", "patternProperties"), "word boundaries are not supported"),
}
"""What messages begin with; the keywords they are about, and what is wrong with them, if the message does not say."""


def named(schema: Node, message: str, compile_error: Callable[[Node], str]) -> str:
    """The message with the keyword and its path before it, if they can be found.

    `compile_error` is the compiler's message for a schema, empty if it takes it. It is asked a few times.
    """
    sign = next((sign for sign in _SIGNS if message.startswith(sign)), None)
    if sign is None:
        return message
    keywords, meaning = _SIGNS[sign]
    places = [(path, name) for path, node in reachable(schema) for name in keywords if name in node]
    place = _last_needed(places, lambda gone: not compile_error(_without(schema, gone)).startswith(sign))
    if place is None:
        return message
    path, name = place
    return f"the keyword {name} at {path}/{name} is not supported so: {meaning or message}"


Place = tuple[str, str]


def _last_needed(places: list[Place], is_cured: Callable[[list[Place]], bool]) -> Place | None:
    """The last place whose removal, together with all before it, takes the error away; None if nothing does."""
    if not is_cured(places):
        return None
    low, high = 0, len(places)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_cured(places[:middle]) else (middle, high)
    return places[low]


def _without(schema: Node, places: list[Place]) -> Node:
    pruned: Node = copy.deepcopy(schema)
    nodes = dict(reachable(pruned))
    for path, name in places:
        nodes[path].pop(name, None)
    return pruned
