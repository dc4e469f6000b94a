"""Where a command's settings come from: --config, --profile and --set, the environment, the home folder."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import rich_click as click

from mlx_serving.config.fields import fields
from mlx_serving.config.home import serving_home
from mlx_serving.config.load import Loaded, load_settings
from mlx_serving.config.values import WrongValue, parse

DRAFT_MODEL = "generation.speculation.draft_model"


def home_folder() -> Path:
    """The home folder that the environment names."""
    return serving_home(os.environ)


@attrs.frozen
class Sources:
    """What the caller chose. `assignments` are the texts of --set, by dotted key."""

    file: Path | None = None
    profile: str | None = None
    assignments: Mapping[str, str] = attrs.field(factory=dict)

    @functools.cached_property
    def home(self) -> Path:
        return home_folder()

    def load(self, overrides: Mapping[str, object] | None = None) -> Loaded:
        """Settings with the command's own flags on top; a flag that is None was not given."""
        return load_settings(
            home=self.home,
            profile=self.profile,
            file=self.file,
            env=os.environ,
            assignments={key: _typed(key, text) for key, text in self.assignments.items()},
            overrides=overrides,
        )

    def load_for(self, model: str | None, overrides: Mapping[str, object] | None = None) -> Loaded:
        """Settings with `model` as the default one, without the adapter in `model:adapter`.

        Folders named on the command line are trusted by that.
        """
        if model is not None and not model.startswith("/"):
            model = model.partition(":")[0]
        flags = {**(overrides or {}), "models.default": model}
        named = [name for name in (model, flags.get(DRAFT_MODEL)) if isinstance(name, str) and name.startswith("/")]
        if named:
            flags["models.trusted_folders"] = (*self.load().settings.models.trusted_folders, *named)
        return self.load(flags)


def model_name(text: str) -> str:
    """The name as the runtime takes it: what looks like a path is made absolute."""
    return str(Path(text).expanduser().resolve()) if text.startswith((".", "/", "~")) else text


def configured(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the three options; the command receives them as `sources`."""

    @click.option("--config", "file", type=click.Path(path_type=Path), help="Settings file to use.")
    @click.option("--profile", help="Named set of settings under the file.")
    @click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="SECTION.KEY=VALUE",
        callback=_assignments,
        help="Set one setting; may be repeated.",
    )
    @functools.wraps(command)
    def wrapped(file: Path | None, profile: str | None, assignments: dict[str, str], **others: Any) -> Any:
        return command(sources=Sources(file, profile, assignments), **others)

    return wrapped


def _assignments(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    parted = [text.partition("=") for text in texts]
    for key, equals, value in parted:
        if not equals or not key:
            raise click.BadParameter(f"write SECTION.KEY=VALUE, not {key + equals + value!r}", ctx, param)
    return {key: value for key, _, value in parted}


def _typed(key: str, text: str) -> object:
    """The value that the text stands for; `load_settings` reports all wrong ones at once."""
    try:
        return parse(fields()[key], text)
    except (KeyError, WrongValue):
        return text
