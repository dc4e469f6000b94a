"""What steps cost on this machine, learnt from the steps themselves. Seconds.

A step over `rows` rows of `width` tokens each has rows * width places. A curve measured at load says how time grows
with places; what was seen since then of plain and of wide steps goes before it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

import attrs

_WEIGHT_UP, _WEIGHT_DOWN = 0.1, 0.4
"""Of a new measurement in a running mean: what else the machine does only ever makes a step slower."""
_OUTLIER = 3.0
"""A measurement counts as this many times the mean at most: the machine does other things too."""


@attrs.define
class _Mean:
    value: float | None = None
    is_warm: bool = False
    """The first step of its size was seen: that one allocates and may compile, so it is not counted."""

    def add(self, seconds: float) -> None:
        if not self.is_warm:
            self.is_warm = True
        elif self.value is None:
            self.value = seconds
        else:
            weight = _WEIGHT_DOWN if seconds < self.value else _WEIGHT_UP
            self.value += weight * (min(seconds, _OUTLIER * self.value) - self.value)


class StepCosts:
    """Estimates, from the first step on."""

    def __init__(self, curve: Mapping[int, float]) -> None:
        """`curve`: seconds of a step by its places, for one and more. No step is slower than one with more places."""
        self._places = sorted(curve)
        self._seconds = [min(curve[wider] for wider in self._places if wider >= places) for places in self._places]
        self._read: dict[int, float] = {}
        """The curve at places that were asked for: a plan asks for many, at every step."""
        self._plain: dict[int, _Mean] = {}
        self._wide: dict[tuple[int, int], _Mean] = {}
        self._draft: dict[int, _Mean] = {}

    def saw_plain(self, rows: int, seconds: float) -> None:
        """A plain decode step, from the end of the one before it to its own."""
        self._plain.setdefault(_size(rows), _Mean()).add(seconds * self._at(_size(rows)) / self._at(rows))

    def saw_wide(self, rows: int, width: int, seconds: float) -> None:
        """A step that checked proposals, everything the host did for it included, the draft model not."""
        alike = self._scaled(_size(rows), _size(width)) / self._scaled(rows, width)
        self._wide.setdefault((_size(rows), _size(width)), _Mean()).add(seconds * alike)

    def saw_draft(self, rows: int, steps: int, seconds: float) -> None:
        """So many steps of the draft model."""
        self._draft.setdefault(_size(rows), _Mean(is_warm=True)).add(seconds / steps)

    def plain(self, rows: int) -> float:
        """A decode step without proposals."""
        seen = self._plain.get(_size(rows))
        if seen is not None and seen.value is not None:
            return seen.value * self._at(rows) / self._at(_size(rows))
        return self._at(rows) * self._correction()

    def wide(self, rows: int, width: int) -> float:
        """A step that checks width - 1 proposals a row."""
        seen = self._wide.get((_size(rows), _size(width)))
        if seen is None or seen.value is None:
            return self._scaled(rows, width)
        return seen.value * self._scaled(rows, width) / self._scaled(_size(rows), _size(width))

    def draft(self, rows: int) -> float | None:
        """A step of the draft model; None if none was seen."""
        known = [each for each in sorted(self._draft) if each <= _size(rows)] or sorted(self._draft)
        return self._draft[known[-1]].value if known else None

    def _scaled(self, rows: int, width: int) -> float:
        return self.plain(rows) * self._at(rows * width) / self._at(rows)

    def _correction(self) -> float:
        """How plain steps of other sizes compare with the curve."""
        ratios = [seen.value / self._at(size) for size, seen in self._plain.items() if seen.value is not None]
        return sum(ratios) / len(ratios) if ratios else 1.0

    def _at(self, places: int) -> float:
        """The curve, straight between its points and beyond the last two."""
        seconds = self._read.get(places)
        if seconds is None:
            seconds = self._read[places] = self._between(places)
        return seconds

    def _between(self, places: int) -> float:
        if len(self._places) == 1:
            return self._seconds[0]
        right = min(max(1, bisect_left(self._places, places)), len(self._places) - 1)
        (x0, x1), (y0, y1) = self._places[right - 1 : right + 1], self._seconds[right - 1 : right + 1]
        return max(self._seconds[0], y0 + (y1 - y0) * (places - x0) / (x1 - x0))


def _size(count: int) -> int:
    """Exact up to 4, then the next power of two: counts that share a mean."""
    return count if count <= 4 else 1 << (count - 1).bit_length()
