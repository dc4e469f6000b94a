"""What processes do at first calls alone: a log of the modules that they import and of the code that they compile."""

from __future__ import annotations

from pathlib import Path

import attrs

_HOOK = Path(__file__).parent / "watching"


@attrs.define
class FirstCalls:
    """The log of every process that is started with `environment`, and of its children."""

    path: Path
    _taken: int = 0

    @property
    def environment(self) -> dict[str, str]:
        return {"FIRST_CALLS_LOG": str(self.path), "PYTHONPATH": str(_HOOK)}

    def news(self) -> list[str]:
        """What was added since the last look, as `4711 imports jinja2`."""
        lines = self.path.read_text().splitlines()
        news, self._taken = lines[self._taken :], len(lines)
        return news
