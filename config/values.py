"""What a setting may be: strict checks without coercion, and how texts of the environment are read."""

from __future__ import annotations

import math
import re
import typing
from typing import Literal

from mlx_serving.config.fields import Field

_INTEGER = re.compile(r"[+-]?[0-9]{1,30}", re.ASCII)
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?", re.ASCII)
_SHOWN_CHARACTERS = 60


class WrongValue(ValueError):
    """The value does not suit its setting; the text says what would."""


def check(field: Field, value: object) -> object:
    """`value` as its setting's type (an integer serves as a number, a list as a tuple); raises WrongValue."""
    typed = _typed(field.kind, value)
    if typed is None or not _within(field, typed):
        raise WrongValue(f"must be {expected(field)}, got {_shown(field, value)}")
    return typed


def parse(field: Field, text: str) -> object:
    """The value that a text of the environment stands for; commas separate a list. Raises WrongValue."""
    return check(field, _scalar(field.kind, text))


def plain_scalar(text: str) -> bool | int | float | str:
    """An unquoted scalar by the core rules of YAML 1.2: `no` and `010:30` are texts, `1e3` is a number."""
    if text in ("true", "false"):
        return text == "true"
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else text


def expected(field: Field) -> str:
    """In words: what the setting takes."""
    if typing.get_origin(field.kind) is Literal:
        return "one of " + ", ".join(typing.get_args(field.kind))
    names = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}
    return names.get(field.kind, "a list of texts") + _bounds(field)


def _bounds(field: Field) -> str:
    low, high = field.minimum, field.maximum
    if low is not None and high is not None:
        return f" from {low} to {high}"
    if low is not None:
        return f" of at least {low}"
    return "" if high is None else f" of at most {high}"


def _within(field: Field, value: object) -> bool:
    if not isinstance(value, int | float):
        return True
    return (field.minimum is None or value >= field.minimum) and (field.maximum is None or value <= field.maximum)


def _typed(kind: object, value: object) -> object | None:
    """None when the type is wrong."""
    if typing.get_origin(kind) is Literal:
        return value if isinstance(value, str) and value in typing.get_args(kind) else None
    if kind is float:
        return _finite(value)
    if kind in (bool, int, str):
        return value if type(value) is kind else None
    if isinstance(value, list | tuple) and all(type(item) is str for item in value):
        return tuple(value)
    return None


def _finite(value: object) -> float | None:
    if type(value) not in (int, float):
        return None
    number = float(typing.cast(float, value))
    return number if math.isfinite(number) else None


def _scalar(kind: object, text: str) -> object:
    if kind is str or typing.get_origin(kind) is Literal:
        return text
    if kind in (bool, int, float):
        return plain_scalar(text)
    return [item.strip() for item in text.split(",")] if text.strip() else []


def _shown(field: Field, value: object) -> str:
    if field.secret:
        return "something else"
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, bool):
        return str(value).lower()
    name = "the text " if isinstance(value, str) else "the list " if isinstance(value, list | tuple) else ""
    text = repr(value)
    return name + (text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…")
