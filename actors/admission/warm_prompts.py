"""The setting `models.warm_prompts`: named system prompts, in place or in a file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import attrs

from mlx_serving.actors.errors import ConfigurationInvalid

FIELD = "models.warm_prompts"
_ENTRY = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,64})(?:@(?P<model>[^=\s]+))?=(?P<text>.+)", re.DOTALL)
MOST_BYTES = 8 << 20
"""Largest file of a prompt."""


@attrs.frozen
class WarmPrompt:
    """A system prompt to be prefilled; `model` None is the default model."""

    name: str
    model: str | None
    text: str


def read_warm_prompts(entries: Iterable[str], home: Path) -> tuple[WarmPrompt, ...]:
    """Each entry is NAME=TEXT, NAME=@FILE, NAME@MODEL=TEXT or NAME@MODEL=@FILE; files stand in `home` or anywhere.

    Raises ConfigurationInvalid for another form, a name that stands twice, and a file that cannot be read.
    """
    found: dict[str, WarmPrompt] = {}
    for entry in entries:
        prompt = _read(entry, home)
        if prompt.name in found:
            raise _invalid(f"the name {prompt.name} stands there twice")
        found[prompt.name] = prompt
    return tuple(found.values())


def _read(entry: str, home: Path) -> WarmPrompt:
    parts = _ENTRY.fullmatch(entry)
    if parts is None:
        raise _invalid(f"write NAME=TEXT or NAME=@FILE, also NAME@MODEL=TEXT, not {entry[:60]!r}")
    text = parts["text"]
    if text.startswith("@"):
        text = _content(home / Path(text[1:]).expanduser(), parts["name"])
    return WarmPrompt(parts["name"], parts["model"], text)


def _content(path: Path, name: str) -> str:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise _invalid(f"{path}, the file of {name}, is larger than {MOST_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _invalid(f"{path}, the file of {name}, cannot be read: {error}") from None
    if not text:
        raise _invalid(f"{path}, the file of {name}, is empty")
    return text


def _invalid(message: str) -> ConfigurationInvalid:
    return ConfigurationInvalid(f"{FIELD}: {message}", field=FIELD)
