"""How many prompt tokens may go between two decode steps, so that running streams hardly notice. Pure."""

from __future__ import annotations

_START_TOKENS = 64
_SMOOTHING = 0.2
_LARGEST_CUT = 0.5
_LARGEST_RISE = 1.5
_USED_SHARE = 0.5
"""A step that took less of its budget than this says nothing about the budget."""


class PrefillPace:
    """A budget that is raised or cut after every step with prefill, by how long that step took.

    Proportional control of the step's duration, each change bounded; it needs no model of what a token costs.
    """

    def __init__(self, slowdown: float, least: int, most: int, longest_seconds: float = 0.0) -> None:
        """A step with prefill may take `slowdown` times a step without, and not more than `longest_seconds` if that
        is not 0, as long as `least` tokens go through."""
        self._slowdown = slowdown
        self._least = least
        self._most = most
        self._longest_seconds = longest_seconds
        self._plain: float | None = None
        self.budget = max(least, min(_START_TOKENS, most))

    def observe(self, seconds: float, prefilled: int) -> None:
        """A step took so long, with so many prompt tokens in it."""
        if prefilled == 0:
            change = 0.0 if self._plain is None else seconds - self._plain
            self._plain = seconds if self._plain is None else self._plain + _SMOOTHING * change
            return
        target = self._target()
        if target is None or prefilled < _USED_SHARE * self.budget:
            return
        factor = min(_LARGEST_RISE, max(_LARGEST_CUT, target / max(seconds, 1e-9)))
        self.budget = min(self._most, max(self._least, round(prefilled * factor)))

    def _target(self) -> float | None:
        if self._plain is None:
            return self._longest_seconds or None
        wanted = self._slowdown * self._plain
        return min(wanted, self._longest_seconds) if self._longest_seconds else wanted
