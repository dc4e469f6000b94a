"""The options that say what an answer is held to."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rich_click as click

from mlx_serving.actors.errors import InvalidParameter
from mlx_serving.actors.messages.values import Guidance, GuidanceKind

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_KINDS: tuple[GuidanceKind, ...] = ("json_schema", "json_object", "regex", "grammar")

OPTIONS = (
    click.option("--json-schema", type=_FILE, help="Answer with JSON that the schema in this file lets in."),
    click.option("--json-object", is_flag=True, help="Answer with a JSON object."),
    click.option("--regex", help="Answer with text that matches this regular expression as a whole."),
    click.option("--grammar", type=_FILE, help="Answer in the language of the grammar in this file, Lark or GBNF."),
)


def guided(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; the command receives them as `guidance`, None if there is none."""

    @functools.wraps(command)
    def wrapped(**others: Any) -> Any:
        given = {kind: value for kind in _KINDS if (value := others.pop(kind))}
        if len(given) > 1:
            raise click.UsageError(f"{' and '.join(map(_flag, given))} exclude each other")
        guidance = next((_guidance(kind, value) for kind, value in given.items()), None)
        return command(guidance=guidance, **others)

    return functools.reduce(lambda function, option: option(function), reversed(OPTIONS), wrapped)


def _guidance(kind: GuidanceKind, value: str | bool | Path) -> Guidance:
    field = _flag(kind)
    if not isinstance(value, Path):
        return Guidance(kind, "" if value is True else str(value), field)
    try:
        return Guidance(kind, value.read_text(encoding="utf-8"), field)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidParameter(f"{field}: {value} cannot be read: {error}", field=field) from error


def _flag(kind: str) -> str:
    return "--" + kind.replace("_", "-")
