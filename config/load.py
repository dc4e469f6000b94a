"""From layers to settings. A later layer wins, key by key:

defaults of the schema < profile < runtime.yaml of the home folder (or another file) < environment < flags

The packaged runtime.yaml documents the defaults and is not read. Whatever is wrong in any layer is gathered
and refused all at once.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import attrs

from mlx_serving.actors.errors import ConfigurationInvalid
from mlx_serving.config.document import Entry, Flaw, read_document
from mlx_serving.config.fields import Field, build, fields, sections
from mlx_serving.config.schema import Settings
from mlx_serving.config.values import WrongValue, check, parse

PREFIX = "MLX_SERVING__"
"""Environment variables of settings begin like this: MLX_SERVING__HTTP__PORT is `http.port`."""

PACKAGED_PROFILES = Path(__file__).parent / "profiles"

_PROFILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*", re.ASCII)


@attrs.frozen
class Origin:
    """Where a value came from, as text: default, file PATH:LINE, profile NAME, env VARIABLE or flag --x."""

    kind: str
    name: str = ""
    line: int | None = None

    def __str__(self) -> str:
        place = f"{self.kind} {self.name}" if self.name else self.kind
        return f"{place}:{self.line}" if self.kind == "file" and self.line is not None else place


DEFAULT = Origin("default")


@attrs.frozen
class Loaded:
    """Valid settings, and where the value of each dotted key came from."""

    settings: Settings
    origins: Mapping[str, Origin]


@attrs.frozen
class _Value:
    key: str
    value: object
    origin: Origin
    read: Callable[[Field, object], object] = check


@attrs.frozen
class _Problem:
    key: str
    message: str
    origin: Origin

    def __str__(self) -> str:
        place = str(self.origin)
        if self.origin.kind == "profile" and self.origin.line is not None:
            place += f", line {self.origin.line}"
        return f"{self.key} ({place}): {self.message}" if self.key else f"{place}: {self.message}"


_Found = Iterator[_Value | _Problem]


def load_settings(
    *,
    home: Path,
    profile: str | None = None,
    file: Path | None = None,
    env: Mapping[str, str] | None = None,
    assignments: Mapping[str, object] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Loaded:
    """Settings from every layer; raises ConfigurationInvalid with every problem of every layer.

    `file` replaces `home/runtime.yaml` and must exist. A profile is a file of `home/profiles` or a packaged
    one. `assignments` are the typed values of --set by dotted key, `overrides` those of a command's own flags, which
    win; None means that the flag was not given.
    """
    found: list[_Value | _Problem] = []
    if profile is not None:
        found += _profile(profile, home)
    path = settings_file(home, file)
    if file is not None or path.exists():
        found += _file(path, lambda line: Origin("file", str(path), line))
    found += _environment(env or {})
    found += [_Value(key, value, Origin("flag", "--set")) for key, value in (assignments or {}).items()]
    found += _flags(overrides or {})
    return _settle(found)


def settings_file(home: Path, file: Path | None) -> Path:
    """The file that `load_settings` reads, whether or not it exists."""
    return file or home / "runtime.yaml"


def profile_names(home: Path) -> list[str]:
    """Profiles that can be asked for, sorted."""
    folders = (home / "profiles", PACKAGED_PROFILES)
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})


def _profile(name: str, home: Path) -> _Found:
    names = profile_names(home)
    if not _PROFILE_NAME.fullmatch(name) or name not in names:
        yield _Problem("", f"no such profile; there are {', '.join(names)}", Origin("profile", name))
        return
    own = home / "profiles" / f"{name}.yaml"
    path = own if own.exists() else PACKAGED_PROFILES / own.name
    yield from _file(path, lambda line: Origin("profile", name, line))


def _file(path: Path, origin: Callable[[int | None], Origin]) -> _Found:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        yield _Problem("", f"cannot be read: {error}", origin(None))
        return
    for item in read_document(text, sections()):
        if isinstance(item, Entry):
            yield _Value(item.key, item.value, origin(item.line))
        else:
            yield _flaw(item, origin)


def _flaw(flaw: Flaw, origin: Callable[[int | None], Origin]) -> _Problem:
    return _Problem(flaw.key, flaw.message, origin(flaw.line))


def _environment(env: Mapping[str, str]) -> _Found:
    for variable in sorted(env):
        if variable.startswith(PREFIX):
            key = variable.removeprefix(PREFIX).replace("__", ".").lower()
            origin = Origin("env", variable)
            if variable != variable_of(key):
                yield _Problem(key, f"must be written {variable_of(key)}", origin)
            else:
                yield _Value(key, env[variable], origin, _parse)


def variable_of(key: str) -> str:
    """The environment variable of a dotted key."""
    return PREFIX + key.upper().replace(".", "__")


def _parse(field: Field, text: object) -> object:
    return parse(field, str(text))


def _flags(overrides: Mapping[str, object]) -> _Found:
    for key, value in overrides.items():
        if value is not None:
            flag = "--" + key.rpartition(".")[2].replace("_", "-")
            yield _Value(key, value, Origin("flag", flag))


def _settle(found: Iterable[_Value | _Problem]) -> Loaded:
    values: dict[str, object] = {key: field.default for key, field in fields().items()}
    origins = dict.fromkeys(values, DEFAULT)
    problems = []
    for item in found:
        if isinstance(item, _Problem):
            problems.append(item)
            continue
        try:
            values[item.key] = _checked(item)
            origins[item.key] = item.origin
        except WrongValue as error:
            problems.append(_Problem(item.key, str(error), item.origin))
    if problems:
        raise _refusal(problems)
    return Loaded(build(values), origins)


def _checked(item: _Value) -> object:
    field = fields().get(item.key)
    if field is not None:
        return item.read(field, item.value)
    if item.key in sections():
        raise WrongValue("is a group of settings, not a setting")
    raise WrongValue("is not a setting" + _hint(item.key))


def _hint(key: str) -> str:
    """The nearest name: the same last word elsewhere, or one that is spelt alike."""
    known = [name for name in (*sections(), *fields()) if name]
    namesakes = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    near = namesakes or difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {' or '.join(near[:3])}?" if near else ""


def _refusal(problems: list[_Problem]) -> ConfigurationInvalid:
    if len(problems) == 1:
        return ConfigurationInvalid(f"Configuration: {problems[0]}", field=problems[0].key or None)
    lines = "\n".join(f"  {problem}" for problem in problems)
    return ConfigurationInvalid(f"Configuration: {len(problems)} problems\n{lines}")
