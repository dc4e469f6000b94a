"""Settings as rows of texts, for `config show`."""

from __future__ import annotations

import json

import attrs

from mlx_serving.config.fields import Field, fields, flatten
from mlx_serving.config.load import Loaded


@attrs.frozen
class Row:
    """One setting: its dotted key, its value as YAML, where that came from, and what it means."""

    key: str
    value: str
    origin: str
    doc: str


def show_rows(loaded: Loaded) -> tuple[Row, ...]:
    """Every setting in the order of the schema; a secret that is set shows as stars."""
    values = flatten(loaded.settings)
    return tuple(
        Row(key, shown(field, values[key]), str(loaded.origins[key]), field.doc) for key, field in fields().items()
    )


def shown(field: Field, value: object) -> str:
    """The value as it may stand in a YAML file."""
    if field.secret and value:
        return "********"
    return to_yaml(value)


def to_yaml(value: object) -> str:
    """A scalar or a tuple of texts as YAML; JSON is the part of YAML that needs no guessing."""
    return json.dumps(value, ensure_ascii=False)
