"""`mlx-serving config`: what is configured, where it comes from, and whether a file is right."""

from __future__ import annotations

import os
import re
from importlib import resources
from pathlib import Path

import attrs
import rich_click as click
from rich.text import Text

from mlx_serving.actors.errors import InvalidParameter, StorageFull
from mlx_serving.config.load import load_settings, settings_file
from mlx_serving.config.show import show_rows
from mlx_serving.frontends.cli.console import note, out, print_json, table
from mlx_serving.frontends.cli.sources import Sources, configured, home_folder


@click.group(cls=click.RichGroup)
def config() -> None:
    """Show and check the configuration.

    A later layer wins: defaults, profile, runtime.yaml of the home folder, environment, flags.
    """


@config.command()
@click.option("--origin", is_flag=True, help="Say where each value comes from.")
@click.option("--json", "as_json", is_flag=True, help="Print every setting, its origin and meaning as JSON.")
@configured
def show(origin: bool, as_json: bool, sources: Sources) -> None:
    """Show every setting that is in force."""
    rows = show_rows(sources.load())
    if as_json:
        print_json([attrs.asdict(row) for row in rows])
        return
    made = table("", "setting", "value", *(["origin"] if origin else []))
    for row in rows:
        changed = "bold" if row.origin != "default" else ""
        cells = [row.key, row.value, row.origin] if origin else [row.key, row.value]
        made.add_row(*(Text(cell, changed) for cell in cells))
    out.print(made)


@config.command()
def path() -> None:
    """Print the path of the home folder's settings file, whether or not it exists."""
    print(settings_file(home_folder(), None))


@config.command()
@click.argument("checked", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--profile", help="Named set of settings under the file.")
def validate(checked: Path, profile: str | None) -> None:
    """Check a settings file; every problem is named with its line."""
    load_settings(home=home_folder(), profile=profile, file=checked)
    note(f"{checked} is valid")


@config.command()
@click.option("--force", is_flag=True, help="Replace the file that is there.")
def init(force: bool) -> None:
    """Write the home folder's settings file: every setting, its default and its meaning, commented out."""
    target = settings_file(home_folder(), None)
    if target.exists() and not force:
        raise InvalidParameter(f"{target} exists already: edit it, or replace it with --force")
    documented = resources.files("mlx_serving.config").joinpath("runtime.yaml").read_text(encoding="utf-8")
    try:
        _write_private(target, _commented(documented))
    except OSError as error:
        raise StorageFull(f"{target} cannot be written: {error.strerror}") from error
    print(target)


def _commented(documented: str) -> str:
    """Without effect until a # is taken away: a value that stands in the file wins over profiles and later defaults."""
    settings = re.sub(r"^( *)(\w+: .+)$", r"\1# \2", documented.partition("\n\n")[2], flags=re.MULTILINE)
    return f"# Every setting with its default. Take the # away from those that you change.\n\n{settings}"


def _write_private(target: Path, text: str) -> None:
    """Whole or not at all, and for this user alone: the file may come to hold an API key."""
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        draft.touch(mode=0o600)
        draft.write_text(text, encoding="utf-8")
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
