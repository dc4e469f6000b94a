"""What a model may be called, and which folder of the store holds it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from mlx_serving.actors.errors import InvalidParameter, ModelNotFound
from mlx_serving.actors.models.aliases import ALIASES

_LOCAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_HUB = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9._-]{1,96}")
_SEPARATOR = "--"


def is_hub_id(name: str) -> bool:
    """`org/name`, as the Hugging Face hub writes it."""
    parts = name.split("/")
    return bool(_HUB.fullmatch(name)) and ".." not in name and not any(_SEPARATOR in part for part in parts)


def is_name(name: str) -> bool:
    """Whether a stored model can have this name; only such a name is ever joined to a path."""
    local = bool(_LOCAL.fullmatch(name)) and _SEPARATOR not in name and ".." not in name
    return local or is_hub_id(name)


def folder_name(name: str) -> str:
    """One path component; different names never share it."""
    if not is_name(name):
        raise InvalidParameter(
            f"{name!r} cannot name a model: use letters, digits, '.', '_' and '-' (not twice), or org/name",
            field="name",
        )
    return name.replace("/", _SEPARATOR)


def new_name(name: str) -> str:
    """A name an import may take: no hub id and no alias, which stand for a source of their own."""
    folder_name(name)
    if "/" in name or name in ALIASES:
        raise InvalidParameter(f"{name!r} is kept for a model that is pulled; choose another name", field="name")
    return name


def not_found(name: str, stored: Iterable[str]) -> ModelNotFound:
    """The error for an unknown name, with the names it may have meant."""
    if name in ALIASES:
        return ModelNotFound(f"the model {name} is not here yet: `models pull {name}` fetches it", model=name)
    near = difflib.get_close_matches(name, {*stored, *ALIASES}, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; `models list` shows what is here"
    return ModelNotFound(f"there is no model {name!r}{hint}", model=name)
