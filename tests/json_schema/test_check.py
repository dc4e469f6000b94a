"""Which schemas are taken, and how the others are refused: without compiling anything."""

from __future__ import annotations

import json
import re
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.guidance_sources import chain, nested

from mlx_serving.actors.errors import GuidanceInvalid
from mlx_serving.actors.json_schema.check import MOST_SCHEMAS, prepared
from mlx_serving.actors.json_schema.keywords import FORMAT_PATTERNS, REFUSED
from mlx_serving.actors.json_schema.walk import reachable


def taken(schema: Any) -> dict[str, Any]:
    return prepared(json.dumps(schema), "asked")


def refusal(schema: Any) -> str:
    with pytest.raises(GuidanceInvalid) as caught:
        taken(schema)
    assert caught.value.field == "asked"
    return caught.value.message


@pytest.mark.parametrize("keyword", REFUSED)
def test_a_keyword_that_is_not_enforced_is_named_with_its_path(keyword: str) -> None:
    schema = {"properties": {"a/b": {"items": [{"anyOf": [{}, {keyword: {"const": 1}}]}]}}}
    assert f"{keyword} at #/properties/a~1b/items/0/anyOf/1/{keyword} is not supported" in refusal(schema)


@pytest.mark.parametrize(("keyword", "value"), [(name, value) for name, values in REFUSED.items() for value in values])
def test_a_keyword_that_restricts_nothing_is_left_out(keyword: str, value: Any) -> None:
    assert taken({"type": "array", keyword: value}) == {"type": "array"}


def test_one_is_not_true_and_zero_is_not_false() -> None:
    assert "uniqueItems" in refusal({"uniqueItems": 0})
    assert "unevaluatedItems" in refusal({"unevaluatedItems": 1})


def test_companions_of_an_absent_keyword_mean_nothing() -> None:
    assert taken({"then": {"not": {}}, "else": {}, "minContains": 2}) == {}
    assert "if at #/if" in refusal({"if": {}, "then": {}})


def test_what_nothing_leads_to_is_not_looked_at() -> None:
    schema = {"$defs": {"unused": {"not": {}}, "used": {}}, "$ref": "#/$defs/used", "default": {"not": {}}}
    assert taken(schema) == schema
    schema["$defs"]["used"]["items"] = {"$ref": "#/$defs/unused"}  # type: ignore[index]
    assert "not at #/$defs/unused/not" in refusal(schema)


def test_annotations_and_words_of_others_are_let_in() -> None:
    schema = {"title": "A", "x-order": 1, "markdownDescription": "*", "examples": [{"not": 1}], "deprecated": True}
    assert taken(schema) == schema


@pytest.mark.parametrize(
    ("reference", "named"),
    [
        ("#/$defs/none", "leads nowhere"),
        ("#/$defs/list/7", "leads nowhere"),
        ("https://example.org/other.json", "nothing is fetched"),
        ("other.json#/a", "nothing is fetched"),
    ],
)
def test_a_reference_must_lead_to_something_in_the_schema(reference: str, named: str) -> None:
    message = refusal({"$defs": {"list": [{}]}, "items": {"$ref": reference}})
    assert named in message
    assert "#/items/$ref" in message


def test_references_by_pointer_anchor_and_id_are_followed() -> None:
    bad = {"uniqueItems": True}
    for reference, extra in (("#/$defs/a%20b~1c/1", {}), ("#here", {"$anchor": "here"}), ("sub", {"$id": "sub"})):
        schema = {"$defs": {"a b/c": [{}, {**bad, **extra}]}, "$ref": reference}
        assert "uniqueItems" in refusal(schema)


@pytest.mark.parametrize("dialect", ["http://json-schema.org/draft-07/schema", "https://json-schema.org/schema#"])
def test_the_dialect_is_written_in_full(dialect: str) -> None:
    assert taken({"$schema": dialect})["$schema"] in (
        "http://json-schema.org/draft-07/schema#",
        "https://json-schema.org/draft/2020-12/schema",
    )


def test_a_list_of_items_without_a_dialect_is_of_an_older_one() -> None:
    assert taken({"items": [{}]})["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert "$schema" not in taken({"prefixItems": [{}]})


@pytest.mark.parametrize("dialect", ["http://json-schema.org/draft-03/schema#", "https://example.org/mine", 5])
def test_another_dialect_is_refused(dialect: Any) -> None:
    assert "#/$schema" in refusal({"$schema": dialect})


def test_formats_are_known_or_refused_where_they_restrict() -> None:
    assert "color" in refusal({"properties": {"a": {"type": ["null", "string"], "format": "color"}}})
    assert taken({"type": "integer", "format": "int32"})["format"] == "int32"
    assert taken({"type": "string", "format": "password"}) == {"type": "string"}
    assert taken({"type": "string", "format": "date", "pattern": "^2"})["allOf"] == [
        {"pattern": FORMAT_PATTERNS["date"]}
    ]


@given(st.integers(0, 9999), st.integers(0, 13), st.integers(0, 32))
def test_dates_are_those_of_the_calendar(year: int, month: int, day: int) -> None:
    text = f"{year:04}-{month:02}-{day:02}"
    try:
        is_date = bool(date.fromisoformat(text))
    except ValueError:
        is_date = False
    assert bool(re.fullmatch(FORMAT_PATTERNS["date"], text)) == is_date


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ('{"minimum": NaN}', "NaN"),
        ("[]", "must be an object"),
        ("false", "lets nothing be said"),
        ("[" * 5000, "not JSON"),
    ],
)
def test_what_is_no_schema_is_refused(source: str, named: str) -> None:
    with pytest.raises(GuidanceInvalid, match=re.escape(named)):
        prepared(source, "asked")


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"pattern": "(?!a)b"}, "#/pattern looks around"),
        ({"patternProperties": {"(": {}}}, "#/patternProperties is no regular expression"),
        ({"pattern": "a" * 5000}, "4096 characters"),
        ({"pattern": 5}, "must be a string"),
        ({"properties": {f"p{place}": {} for place in range(2001)}}, "2000 members"),
        ({"multipleOf": 10_007}, "multipleOf"),
        ({"$defs": chain(MOST_SCHEMAS)["$defs"], "$ref": "#/$defs/d0"}, "10000 schemas"),
    ],
)
def test_sizes_are_bounded(schema: Any, named: str) -> None:
    assert named in refusal(schema)


def test_ordinary_sizes_are_not() -> None:
    schema = {"pattern": r"^\p{L}+\(\?\!$", "multipleOf": 0.01, "items": nested(40)}
    assert taken(schema) == schema


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "items", "allOf", "properties", "$ref", "format", "pattern", "not", "$schema", "a"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(json_values)
def test_whatever_is_asked_the_answer_is_a_schema_or_one_kind_of_error(value: Any) -> None:
    try:
        schema = taken(value)
    except GuidanceInvalid:
        return
    assert all(not REFUSED.keys() & node.keys() for _, node in reachable(schema))
