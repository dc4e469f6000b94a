"""How likely proposed tokens are to be accepted: estimated for each row, and for all rows where a new one starts.

A proposal has a kind: tokens of the draft model, or of an occurrence by how far back it agrees, since a long agreement
goes on far more often than a short one.
"""

from __future__ import annotations

import attrs

DRAFT_KIND = 0
_AGREEMENTS = (3, 6, 12)
"""From so many equal tokens on, an occurrence is of the next kind."""
KINDS = len(_AGREEMENTS) + 2
_FIRST_GUESSES = (0.7, 0.4, 0.5, 0.7, 0.85)
_GUESS_WEIGHT = 3.0
"""Tokens that an estimate without experience counts for."""
_ROW_MEMORY, _SHARED_MEMORY = 0.93, 0.99
"""What each proposal leaves of the weight of those before it."""
_FADING = 0.999
_LARGEST = 0.995


def kind_of(agreement: int) -> int:
    """The kind of an occurrence's tokens."""
    return 1 + sum(agreement >= least for least in _AGREEMENTS)


@attrs.define
class _Rate:
    accepted: float = 0.0
    tried: float = 0.0

    def record(self, accepted: int, tried: int, memory: float) -> None:
        self.accepted = self.accepted * memory + accepted
        self.tried = self.tried * memory + tried

    def estimate(self, guess: float) -> float:
        return (self.accepted + _GUESS_WEIGHT * guess) / (self.tried + _GUESS_WEIGHT)


def _rates() -> list[_Rate]:
    return [_Rate() for _ in range(KINDS)]


@attrs.define(eq=False)
class SharedAcceptance:
    """Of all rows of a model so far: what is expected of a row that has shown nothing."""

    _rates: list[_Rate] = attrs.field(factory=_rates)

    def rate(self, kind: int) -> float:
        return self._rates[kind].estimate(_FIRST_GUESSES[kind])

    def record(self, kind: int, accepted: int, tried: int) -> None:
        self._rates[kind].record(accepted, tried, _SHARED_MEMORY)

    def fade(self, kind: int) -> None:
        """A step without a trial: what was seen long ago counts less and less."""
        self._rates[kind].record(0, 0, _FADING)


@attrs.define(eq=False)
class RowAcceptance:
    """Of one row."""

    shared: SharedAcceptance
    _rates: list[_Rate] = attrs.field(factory=_rates)

    def rate(self, kind: int) -> float:
        """The probability that the next proposed token is accepted, given that all before it were."""
        return min(_LARGEST, self._rates[kind].estimate(self.shared.rate(kind)))

    def record(self, kind: int, accepted: int, proposed: int) -> None:
        """`accepted` of `proposed` tokens were: those after the first difference were never tried."""
        tried = min(accepted + 1, proposed)
        self._rates[kind].record(accepted, tried, _ROW_MEMORY)
        self.shared.record(kind, accepted, tried)


def expected_tokens(rate: float, proposed: int) -> float:
    """Tokens that a step yields on average, the model's own one included."""
    if rate >= 1.0:
        return proposed + 1.0
    return float((1.0 - rate ** (proposed + 1)) / (1.0 - rate))
