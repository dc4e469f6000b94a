"""What JSON Schema keywords mean to us: which are enforced, which are refused, and where schemas stand in schemas.

A keyword that restricts answers and is not enforced is refused by its name. One that is in no table restricts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

JSON = Any

REFUSED: Mapping[str, tuple[JSON, ...]] = {
    "$dynamicRef": (),
    "$recursiveRef": (),
    "contains": (),
    "dependencies": ({},),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "if": (),
    "not": (False,),
    "propertyNames": (True, {}),
    "unevaluatedItems": (True, {}),
    "unevaluatedProperties": (True, {}),
    "uniqueItems": (False,),
}
"""Keywords that are not enforced, each with the values under which it restricts nothing."""

COMPANIONS = {"then": "if", "else": "if", "minContains": "contains", "maxContains": "contains"}
"""Keywords that mean nothing without another one, which is refused."""

ONE_SCHEMA = ("additionalProperties", "additionalItems", "items")
SCHEMA_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
NAMED_SCHEMAS = ("properties", "patternProperties")

DEFAULT_DIALECT = "https://json-schema.org/draft/2020-12/schema"
LIST_DIALECT = "http://json-schema.org/draft-07/schema#"
"""Where `items` is a list and nothing names the dialect: later ones have no such form."""
DIALECTS: Mapping[str, str] = {
    "draft-04/schema": "http://json-schema.org/draft-04/schema#",
    "draft-06/schema": "http://json-schema.org/draft-06/schema#",
    "draft-07/schema": LIST_DIALECT,
    "draft/2019-09/schema": "https://json-schema.org/draft/2019-09/schema",
    "draft/2020-12/schema": DEFAULT_DIALECT,
    "schema": DEFAULT_DIALECT,
}
"""The known values of `$schema`, without scheme, host and fragment, and how each is written in full."""

_DATE = (
    r"(?:000[1-9]|00[1-9]\d|0[1-9]\d\d|[1-9]\d{3})-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])"
    r"|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
    r"|(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29"
)
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
FORMAT_PATTERNS: Mapping[str, str] = {
    "date": f"^(?:{_DATE})$",
    "time": f"^{_TIME}$",
    "date-time": f"^(?:{_DATE})T{_TIME}$",
}
"""Formats as patterns of our own: RFC 3339 with the days that each month of each year has, and no leap seconds."""
FORMATS = frozenset({"duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", *FORMAT_PATTERNS})
HINTS = frozenset({"password"})
"""Formats that any string has."""
