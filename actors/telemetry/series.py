"""The values of one metric by its label values, with a bound on how many there may be."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator

import attrs

from mlx_serving.actors.telemetry.metrics import Metric

MAX_SERIES = 500
"""Series of one metric; what comes later counts under OTHER."""
MAX_LABEL = 120
"""Characters of a label's value; longer ones are cut."""
OTHER = "other"

Labels = tuple[str, ...]


@attrs.define
class Distribution:
    """A histogram's counts: one for each bucket, and a last one for what is larger. Not cumulative."""

    counts: list[int]
    total: float = 0.0


class Series:
    """A counter's or gauge's numbers, or a histogram's distributions."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self._numbers: dict[Labels, float] = {}
        self._distributions: dict[Labels, Distribution] = {}

    def add(self, amount: float, *labels: str) -> None:
        key = self._key(labels, self._numbers)
        self._numbers[key] = self._numbers.get(key, 0.0) + amount

    def set(self, value: float, *labels: str) -> None:
        self._numbers[self._key(labels, self._numbers)] = value

    def observe(self, value: float, *labels: str, weight: int = 1) -> None:
        """Count `value` as often as `weight` says."""
        key = self._key(labels, self._distributions)
        distribution = self._distributions.get(key)
        if distribution is None:
            distribution = Distribution([0] * (len(self.metric.buckets) + 1))
            self._distributions[key] = distribution
        distribution.counts[bisect.bisect_left(self.metric.buckets, value)] += weight
        distribution.total += value * weight

    def clear(self) -> None:
        self._numbers.clear()

    def drop(self, gone: Callable[[Labels], bool]) -> None:
        """Forget the numbers of things that are no longer there."""
        for labels in [labels for labels in self._numbers if gone(labels)]:
            del self._numbers[labels]

    def numbers(self) -> Iterator[tuple[Labels, float]]:
        yield from self._numbers.items()

    def distributions(self) -> Iterator[tuple[Labels, Distribution]]:
        yield from self._distributions.items()

    def _key(self, labels: Labels, known: dict[Labels, float] | dict[Labels, Distribution]) -> Labels:
        key = tuple(label[:MAX_LABEL] for label in labels)
        if key in known or len(known) < MAX_SERIES:
            return key
        return (OTHER,) * len(key)
