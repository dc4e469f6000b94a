"""A group whose commands are imported when they are called.

Its help page needs click alone: rich would double the time it takes. The commands' own pages are rich.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

import click


class _Page(click.HelpFormatter):
    """A help page with coloured headings and names; click takes the colours away where they do not belong."""

    def write_heading(self, heading: str) -> None:
        super().write_heading(click.style(heading, bold=True))

    def write_dl(self, rows: Iterable[tuple[str, str]], *args: Any, **kwargs: Any) -> None:
        super().write_dl([(click.style(name, fg="cyan"), text) for name, text in rows], *args, **kwargs)


class _Context(click.Context):
    formatter_class = _Page


class CommandTree(click.Group):
    """Knows each command by module and one line of help; only the called one's module is imported.

    A command's module is `mlx_serving.frontends.cli.<module>`, and the command in it has the module's name.
    """

    context_class = _Context

    def __init__(self, *args: Any, lazy: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        """`lazy` maps a command's name to its module and its line of help, in the order of the help page."""
        super().__init__(*args, **kwargs)
        self._modules = {name: module for name, (module, _) in lazy.items()}
        for name, (_, line) in lazy.items():
            self.add_command(click.Command(name, help=line, short_help=line))

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._modules)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, listed, rest = super().resolve_command(ctx, args)
        return name, self._imported(name) if name in self._modules else listed, rest

    def _imported(self, name: str) -> click.Command:
        module = self._modules[name]
        command = getattr(importlib.import_module(f"mlx_serving.frontends.cli.{module}"), module)
        assert isinstance(command, click.Command)
        return command
