"""Engines that speculate whenever they can, whether it pays or not."""

from __future__ import annotations

from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine
from mlx_serving.actors.generation.speculation.costs import StepCosts


def eager(engine: MlxEngine) -> MlxEngine:
    """The same engine; it proposes whatever it can."""
    speculator = engine._decoding.speculator
    assert speculator is not None
    speculator._planner.costs = speculator._costs = _Free({1: 1.0, 2: 1.0})
    return engine


class _Free(StepCosts):
    """Costs that no measurement changes, and a draft model that costs nothing."""

    def saw_plain(self, rows: int, seconds: float) -> None: ...

    def saw_wide(self, rows: int, width: int, seconds: float) -> None: ...

    def saw_draft(self, rows: int, steps: int, seconds: float) -> None: ...

    def wide(self, rows: int, width: int) -> float:
        return self.plain(rows) / 10
