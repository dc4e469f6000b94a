"""What is wrong with a body: every problem with its path, raised together as one error."""

from __future__ import annotations

import json
from typing import Any

import attrs

from mlx_serving.actors.errors import CallerError, InvalidParameter, UnsupportedParameter

MOST_REPORTED = 20
_LONGEST_SHOWN = 60


@attrs.frozen
class Problem:
    """`path` as in `messages[0].content`; `unsupported` marks parameters that are unknown or not offered."""

    path: str
    message: str
    unsupported: bool = False


@attrs.define
class Problems:
    """Collects problems while a body is read."""

    found: list[Problem] = attrs.field(factory=list)

    @property
    def is_full(self) -> bool:
        """Whether enough was found that reading on would only lengthen the message."""
        return len(self.found) >= MOST_REPORTED

    def add(self, path: str, message: str, *, unsupported: bool = False) -> None:
        if not self.is_full:
            self.found.append(Problem(path, message, unsupported))

    def refuse(self, path: str, message: str) -> None:
        """A parameter that is unknown or not offered."""
        self.add(path, message, unsupported=True)

    def raise_found(self) -> None:
        """Raise UnsupportedParameter if nothing but such was found, InvalidParameter otherwise; or return."""
        if not self.found:
            return
        kind: type[CallerError] = InvalidParameter
        if all(problem.unsupported for problem in self.found):
            kind = UnsupportedParameter
        text = "; ".join(f"{problem.path}: {problem.message}" for problem in self.found)
        if self.is_full:
            text += "; and perhaps more"
        raise kind(text, field=self.found[0].path)


def inside(path: str, name: str) -> str:
    """The path of member `name`, shortened so that a hostile name cannot swell the answer."""
    short = name if len(name) <= _LONGEST_SHOWN else name[:_LONGEST_SHOWN] + "…"
    return f"{path}.{short}" if path else short or '""'


def shown(value: Any) -> str:
    """A JSON value in an error message: scalars as they are, the rest by type."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"
