"""Quantiles over a sliding window, in bounded memory and with a bounded relative error.

A slice of the window counts values in bins whose bounds grow by a constant factor (the idea of DDSketch:
Masson, Rim and Lee, VLDB 2019). A quantile is the middle of the bin that holds the value of that rank, so it
is off by at most ERROR times the true value. Slices form a ring: an old one is emptied when its turn comes.
"""

from __future__ import annotations

import math
from collections import Counter

import attrs

ERROR = 0.01
"""Relative error of a quantile."""
SLICES = 30
"""The window moves on by its own length divided by this."""
SMALLEST = 1e-6
"""Seconds; anything below counts as this."""
LARGEST = 1e6

_GROWTH = (1 + ERROR) / (1 - ERROR)
_LOG_GROWTH = math.log(_GROWTH)


def bin_of(value: float) -> int:
    """The bin that holds `value`: bin i holds what is above growth^(i-1) and up to growth^i."""
    return math.ceil(math.log(min(max(value, SMALLEST), LARGEST)) / _LOG_GROWTH)


def middle_of(index: int) -> float:
    """The value that is at most ERROR away, relatively, from everything in the bin."""
    return float(2 * _GROWTH**index / (_GROWTH + 1))


@attrs.define
class _Slice:
    turn: int = -1
    bins: Counter[int] = attrs.field(factory=Counter)


class SlidingCounts:
    """How often each key was counted in the last `window` seconds (less up to one slice)."""

    def __init__(self, window: float) -> None:
        self._width = window / SLICES
        self._slices = [_Slice() for _ in range(SLICES)]

    def count(self, key: int, now: float, times: int = 1) -> None:
        turn = self._turn(now)
        current = self._slices[turn % SLICES]
        if current.turn != turn:
            current.turn = turn
            current.bins.clear()
        current.bins[key] += times

    def totals(self, now: float) -> Counter[int]:
        """The counts of all slices inside the window that ends now."""
        oldest = self._turn(now) - SLICES + 1
        totals: Counter[int] = Counter()
        for each in self._slices:
            if each.turn >= oldest:
                totals.update(each.bins)
        return totals

    def _turn(self, now: float) -> int:
        return math.floor(now / self._width)


class SlidingQuantiles:
    """Quantiles of what was observed in the last `window` seconds (less up to one slice)."""

    def __init__(self, window: float) -> None:
        self._counts = SlidingCounts(window)

    def observe(self, value: float, now: float, weight: int = 1) -> None:
        self._counts.count(bin_of(value), now, weight)

    def at(self, fractions: tuple[float, ...], now: float) -> tuple[int, list[float]]:
        """How many values there are, and for each fraction the value of rank ceil(fraction * count)."""
        totals = self._counts.totals(now)
        count = totals.total()
        ranks = [max(1, math.ceil(fraction * count)) for fraction in fractions]
        return count, [_value_at(totals, rank) for rank in ranks]


def _value_at(totals: Counter[int], rank: int) -> float:
    passed = 0
    for index in sorted(totals):
        passed += totals[index]
        if passed >= rank:
            return middle_of(index)
    return 0.0
