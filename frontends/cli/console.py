"""The two ends of the terminal. Answers, tables and `--json` go to stdout, everything else to stderr.

Colour follows the terminal: none when piped or when NO_COLOR is set.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import attrs
from rich.console import Console
from rich.table import Table

T = TypeVar("T")

PIPE_WIDTH = 200
"""Columns of a table that goes into a file or another program."""

out = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
err = Console(highlight=False, stderr=True)


def note(text: str) -> None:
    """One dim line on stderr: what is being done, for whoever watches."""
    err.print(text, style="dim", markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """One yellow line on stderr: something the reader may want to act on."""
    err.print(text, style="yellow", markup=False, soft_wrap=True)


def awaited(items: Iterable[T], what: str) -> Iterator[T]:
    """The same items; at a terminal a spinner says that the first one is waited for."""
    left = iter(items)
    with err.status(what):
        first = list(itertools.islice(left, 1))
    yield from itertools.chain(first, left)


def print_json(value: Any) -> None:
    """`value`, attrs instances included, as indented JSON on stdout: no colour, no wrapping."""
    print(json.dumps(value, default=_plain, indent=2, ensure_ascii=False))


def table(title: str, *columns: str, right: tuple[str, ...] = ()) -> Table:
    """A table with the house's look; the columns named in `right` hold numbers."""
    made = Table(title=title, title_justify="left", title_style="bold", header_style="cyan", box=None)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def _plain(value: Any) -> Any:
    if attrs.has(type(value)):
        return attrs.asdict(value, recurse=False)
    if isinstance(value, bytes):
        raise TypeError("bytes do not belong in a JSON answer")
    return str(value)
