"""What tests of pulling share: a progress that remembers, and pip cut off from the network."""

from __future__ import annotations

import attrs
import pytest

ALIAS = "tiny-1m"
WHEEL = "tiny_model-1.0-py3-none-any.whl"


class Interrupted(BaseException):
    """Stands for the signal that ends a process in mid-work."""


@attrs.frozen
class Phases:
    """A progress that remembers the phases it was told, in order."""

    seen: list[str] = attrs.field(factory=list)

    def __call__(self, phase: str, done: int, total: int | None) -> None:
        assert total is None or 0 <= done <= total
        if self.seen[-1:] != [phase]:
            self.seen.append(phase)


def only_pip(monkeypatch: pytest.MonkeyPatch, **settings: str) -> None:
    """Replaces pip's own configuration by these settings."""
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
