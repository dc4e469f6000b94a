"""Kinds of parameter and how they are checked: nothing is coerced, everything wrong is reported at once.

A `Check` takes a value and its path and returns the value in our terms; it raises a CallerError whose
`field` is the path.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any

import attrs
import orjson

from mlx_serving.actors.errors import CallerError, InvalidParameter, UnsupportedParameter
from mlx_serving.frontends.stdio.rpc import LONGEST_ID, is_id, shorten

Check = Callable[[Any, str], Any]

_SHOWN = 60
_MOST_REPORTED = 20


@attrs.frozen
class Parameter:
    """A named parameter; null means the same as leaving it out."""

    name: str
    check: Check
    required: bool = False


def read(given: Any, parameters: Iterable[Parameter], path: str = "") -> dict[str, Any]:
    """The parameters that were given, checked. `path` is where `given` stands in the request.

    Raises UnsupportedParameter if nothing but unknown or unsupported parameters is wrong, InvalidParameter
    otherwise; the message lists everything and `field` is the first.
    """
    if not isinstance(given, dict):
        raise wrong(path or "params", "an object with named parameters", given)
    known = {parameter.name: parameter for parameter in parameters}
    problems: list[CallerError] = [_unknown(name, known, path) for name in given if name not in known]
    values: dict[str, Any] = {}
    for name, parameter in known.items():
        try:
            if given.get(name) is not None:
                values[name] = parameter.check(given[name], _inside(path, name))
            elif parameter.required:
                raise InvalidParameter(f"{_inside(path, name)} is required", field=_inside(path, name))
        except CallerError as problem:
            problems.append(problem)
    _raise_all(problems)
    return values


def _raise_all(problems: list[CallerError]) -> None:
    if problems:
        unsupported = all(isinstance(problem, UnsupportedParameter) for problem in problems)
        kind = UnsupportedParameter if unsupported else InvalidParameter
        message = "; ".join(problem.message for problem in problems[:_MOST_REPORTED])
        raise kind(message, field=problems[0].field)


def _inside(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _unknown(name: str, known: Iterable[str], path: str) -> UnsupportedParameter:
    near = difflib.get_close_matches(name[:LONGEST_ID], known, n=1)
    hint = f", did you mean {near[0]}?" if near else ""
    where = _inside(path, shorten(name, _SHOWN))
    return UnsupportedParameter(f"{where} is not a known parameter{hint}", field=where)


def wrong(path: str, wanted: str, value: Any) -> InvalidParameter:
    """The error that says what `path` must be and what it is."""
    if isinstance(value, list | dict):
        shown = "a list" if isinstance(value, list) else "an object"
    else:
        shown = shorten(orjson.dumps(value).decode(), _SHOWN)
    return InvalidParameter(f"{path} must be {wanted}, not {shown}", field=path)


# --- kinds --------------------------------------------------------------------------------------------------


def _bounds(least: int, most: int | None, unit: str) -> str:
    if most is not None:
        return f" of {least} to {most} {unit}"
    return " that is not empty" if least else ""


def string(shortest: int = 0, longest: int | None = None) -> Check:
    """A string of so many characters."""
    bounds = _bounds(shortest, longest, "characters")

    def check(value: Any, path: str) -> str:
        if not isinstance(value, str) or not shortest <= len(value) <= (longest or len(value)):
            raise wrong(path, f"a string{bounds}", value)
        return value

    return check


def whole(least: int, most: int) -> Check:
    """An integer; neither true nor 1.0 is one. Bounds are inclusive."""

    def check(value: Any, path: str) -> int:
        if type(value) is not int or not least <= value <= most:
            raise wrong(path, f"an integer from {least} to {most}", value)
        return value

    return check


def real(least: float, most: float, *, above: bool = False) -> Check:
    """A number, returned as float. Bounds are inclusive, the lower one not if `above`."""
    wanted = f"a number {'above' if above else 'from'} {least:g} to {most:g}"

    def check(value: Any, path: str) -> float:
        if type(value) not in (int, float) or not least <= value <= most or (above and value == least):
            raise wrong(path, wanted, value)
        return float(value)

    return check


def flag(value: Any, path: str) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise wrong(path, "true or false", value)
    return value


def choice(*options: str) -> Check:
    """One of some strings."""

    def check(value: Any, path: str) -> str:
        if not isinstance(value, str) or value not in options:
            raise wrong(path, "one of " + ", ".join(options), value)
        return value

    return check


def many(item: Check, shortest: int = 0, longest: int | None = None) -> Check:
    """A list of so many items, returned as tuple."""
    bounds = _bounds(shortest, longest, "items")

    def check(value: Any, path: str) -> tuple[Any, ...]:
        if not isinstance(value, list) or not shortest <= len(value) <= (longest or len(value)):
            raise wrong(path, f"a list{bounds}", value)
        return tuple(item(each, f"{path}[{index}]") for index, each in enumerate(value))

    return check


def record(*parameters: Parameter) -> Check:
    """An object with these members and no others, returned as dict."""

    def check(value: Any, path: str) -> dict[str, Any]:
        return read(value, parameters, path)

    return check


def anything(value: Any, path: str) -> Any:
    """Any JSON value: it is checked elsewhere."""
    return value


def unsupported(*neutral: Any) -> Check:
    """A parameter that is not supported: only values that ask for nothing are let in."""
    allowed = ", ".join(["null", *(orjson.dumps(value).decode() for value in neutral)])

    def check(value: Any, path: str) -> None:
        if not any(type(value) is type(each) and value == each for each in neutral):
            raise UnsupportedParameter(f"{path} is not supported; leave it out ({allowed})", field=path)

    return check


def token(value: Any, path: str) -> str | int | float:
    """A progress token: a number, or a string that is not overlong."""
    if not is_id(value):
        raise wrong(path, f"a number or a string of at most {LONGEST_ID} characters", value)
    return value  # type: ignore[no-any-return]  # is_id says what it is


def stream_id(value: Any, path: str) -> str:
    """The host's name of a stream. It stands in every line of the stream, so it is short."""
    if not isinstance(value, str) or not 1 <= len(value) <= 128 or not value.isprintable():
        raise wrong(path, "a string of 1 to 128 printable characters", value)
    return value
