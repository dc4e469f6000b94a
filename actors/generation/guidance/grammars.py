"""From what was asked for to a grammar: through Outlines' types, which check it, to llguidance's notation.

Both libraries are imported at the first use, as that takes a second.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NoReturn

from mlx_serving.actors.errors import GuidanceInvalid
from mlx_serving.actors.json_schema.guidance import check, choices_of, schema_of
from mlx_serving.actors.json_schema.walk import Node
from mlx_serving.actors.messages.values import Guidance

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions
    from outlines.types import CFG, Choice, JsonSchema, Regex

_OPTIONS: JsonCompileOptions = {
    # One line, as Python writes JSON: a model cannot get lost in white space, and most of the layout is forced.
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
    "whitespace_pattern": None,
    "lenient": False,
    "coerce_one_of": False,
}


_LONGEST_PROBLEM = 500


def term_of(guidance: Guidance) -> JsonSchema | Regex | Choice | CFG:
    """The same as one of Outlines' types. Raises GuidanceInvalid for what is wrong with it."""
    from outlines import types

    match guidance.kind:
        case "json_schema" | "json_object":
            return json_term(schema_of(guidance), guidance.field)
        case "regex":
            check(guidance)
            return types.Regex(guidance.source)
        case "choice":
            return types.Choice(list(choices_of(guidance)))
        case "grammar" | "calls":
            check(guidance)
            return types.CFG(guidance.source)


def json_term(schema: Node, field: str) -> JsonSchema:
    """Outlines' type of a schema that was prepared. Raises GuidanceInvalid for keywords with senseless values."""
    from jsonschema import SchemaError
    from outlines import types

    try:
        return types.JsonSchema(json.dumps(schema))
    except SchemaError as error:
        path = "/".join(["#", *map(str, error.absolute_path)])
        refuse(field, f"{path} is no part of a JSON Schema: {error.message[:200]}")
    except RecursionError:
        refuse(field, "the schema is nested too deeply")


def grammar_of(term: JsonSchema | Regex | Choice | CFG, field: str) -> str:
    """In llguidance's notation. Raises GuidanceInvalid if that cannot be."""
    import llguidance
    from outlines import types

    try:
        if isinstance(term, types.JsonSchema):
            return llguidance.LLMatcher.grammar_from_json_schema(term.schema, overrides=_OPTIONS)
        if isinstance(term, types.Regex):
            return llguidance.LLMatcher.grammar_from_regex(term.pattern)
        if isinstance(term, types.Choice):
            return llguidance.LLMatcher.grammar_from_regex("|".join(map(_literal, term.items)))
        return llguidance.grammar_from("grammar", term.definition)
    except (ValueError, RecursionError) as error:
        refuse(field, str(error))


def lark_of(source: str) -> str:
    """A grammar in Lark's notation alone."""
    import llguidance

    return llguidance.LLMatcher.grammar_from_lark(source)


def refuse(field: str, problem: str) -> NoReturn:
    if len(problem) > _LONGEST_PROBLEM:
        problem = problem[:_LONGEST_PROBLEM] + "…"
    raise GuidanceInvalid(f"{field}: {problem}", field=field)


def _literal(text: str) -> str:
    """A regular expression that matches this text alone."""
    return re.sub(r"[^A-Za-z0-9]", lambda match: rf"\x{{{ord(match[0]):X}}}", text)
