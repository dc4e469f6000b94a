"""The settings of the schema as flat rows: `http.port` instead of an attribute of an attribute."""

from __future__ import annotations

import functools
import typing
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, cast

import attrs

from mlx_serving.config.schema import Settings


@attrs.frozen
class Field:
    """One setting. `kind` is its type: bool, int, float, str, a Literal of texts or a tuple of texts."""

    key: str
    kind: Any
    default: object
    doc: str
    minimum: float | None
    maximum: float | None
    live: bool
    secret: bool


@attrs.frozen
class Section:
    """A group of settings; the top of the schema has the key ""."""

    key: str
    doc: str


@functools.cache
def fields() -> Mapping[str, Field]:
    """Every setting by its dotted key, in the order of the schema."""
    return MappingProxyType({row.key: row for row in _walk(Settings, "") if isinstance(row, Field)})


@functools.cache
def sections() -> Mapping[str, Section]:
    """Every group of settings by its dotted key, in the order of the schema."""
    return MappingProxyType({row.key: row for row in _walk(Settings, "") if isinstance(row, Section)})


def build(values: Mapping[str, object]) -> Settings:
    """Settings from checked values of every dotted key."""
    return cast(Settings, _build(Settings, "", values))


def flatten(settings: Settings) -> dict[str, object]:
    """The inverse of `build`."""
    return {key: functools.reduce(getattr, key.split("."), cast(Any, settings)) for key in fields()}


def _walk(cls: type, key: str) -> Iterator[Field | Section]:
    yield Section(key, cls.__doc__ or "")
    for attribute, kind in _attributes(cls):
        dotted = f"{key}.{attribute.name}" if key else attribute.name
        if attrs.has(kind):
            yield from _walk(kind, dotted)
        else:
            yield Field(dotted, kind, attribute.default, **attribute.metadata)


def _build(cls: type, prefix: str, values: Mapping[str, object]) -> object:
    arguments = {}
    for attribute, kind in _attributes(cls):
        key = prefix + attribute.name
        arguments[attribute.name] = _build(kind, f"{key}.", values) if attrs.has(kind) else values[key]
    return cls(**arguments)


@functools.cache
def _attributes(cls: type) -> tuple[tuple[attrs.Attribute[Any], Any], ...]:
    """Kept: the types are read from source text, and a running server looks at its settings every few seconds."""
    kinds = typing.get_type_hints(cls)
    return tuple((attribute, kinds[attribute.name]) for attribute in attrs.fields(cls))
