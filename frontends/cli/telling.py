"""An answer on the terminal as it comes: its text on stdout, its reasoning dim on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import attrs

from mlx_serving.actors.messages.frontend import Delta
from mlx_serving.frontends.cli.console import err


@attrs.define
class Telling:
    """One answer. `texts` and `reasoning` are what was told so far."""

    texts: list[str] = attrs.field(factory=list)
    reasoning: list[str] = attrs.field(factory=list)

    def tell(self, deltas: Iterable[Delta]) -> None:
        """Reasoning ends with a line break of its own, so that the answer begins a line."""
        for delta in deltas:
            if delta.reasoning:
                self.reasoning.append(delta.reasoning)
                err.print(delta.reasoning, style="dim", markup=False, soft_wrap=True, end="")
            if delta.text:
                if self.reasoning and not self.texts:
                    err.print()
                self.texts.append(delta.text)
                sys.stdout.write(delta.text)
        sys.stdout.flush()
