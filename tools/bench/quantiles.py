"""Order statistics of measured samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import attrs


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of the samples lie, interpolated linearly. `ordered` is ascending, not
    empty."""
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


@attrs.frozen
class Spread:
    """What repetitions of one measurement gave, in the unit of the samples."""

    count: int
    minimum: float
    median: float
    p95: float
    p99: float
    maximum: float
    mean: float

    @classmethod
    def of(cls, samples: Iterable[float]) -> Spread | None:
        """None when there is no sample."""
        ordered = sorted(samples)
        if not ordered:
            return None
        return cls(
            len(ordered),
            ordered[0],
            quantile(ordered, 0.5),
            quantile(ordered, 0.95),
            quantile(ordered, 0.99),
            ordered[-1],
            sum(ordered) / len(ordered),
        )

    def json(self) -> dict[str, Any]:
        """The fields by name."""
        return attrs.asdict(self)
