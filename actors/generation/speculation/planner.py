"""How many tokens to propose to each row in the next step. Pure: estimates in, lengths out.

All rows of a batch take the same forward pass, as wide as the longest proposal, so the width is chosen for the batch:
the one that promises most tokens a second. No proposal is one of the choices, and it wins unless another is better
by a margin. While it wins, a short proposal is tried from time to time, ever more rarely while that is no better,
so that a mistaken estimate mends and costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from mlx_serving.actors.generation.speculation.acceptance import expected_tokens
from mlx_serving.actors.generation.speculation.costs import StepCosts

MARGIN = 1.04
"""Tokens a second that proposing must promise, as a multiple of plain decoding."""
PROBE_TOKENS = 2
_FIRST_PROBE, _RAREST_PROBE = 64, 2048
"""Plain steps before a probe."""


@attrs.frozen
class Offer:
    """What a row could propose: so many tokens, each accepted with probability `rate` after those before it.

    `is_drafted`: a draft model would have to be run for them.
    """

    tokens: int
    rate: float
    is_drafted: bool = False


@attrs.define(eq=False)
class Planner:
    """One per batch. `longest`: most tokens proposed to a row at once."""

    costs: StepCosts
    longest: int
    _quiet: int = 0
    """Plain steps since the last proposal, while some row had an offer."""
    _patience: int = _FIRST_PROBE

    def plan(self, rows: int, offers: Sequence[Offer]) -> int:
        """The most tokens to propose to any row of a batch of `rows`; 0: decode plainly."""
        most = min(self.longest, max((offer.tokens for offer in offers), default=0))
        if not most:
            return 0
        best = max(range(1, most + 1), key=lambda count: self._speed(rows, offers, count))
        if self._speed(rows, offers, best) >= MARGIN * self.plain_speed(rows):
            self._quiet, self._patience = 0, _FIRST_PROBE
            return best
        self._quiet += 1
        if self._quiet < self._patience:
            return 0
        self._quiet, self._patience = 0, min(2 * self._patience, _RAREST_PROBE)
        return min(most, PROBE_TOKENS)

    def plain_speed(self, rows: int) -> float:
        return rows / self.costs.plain(rows)

    def _speed(self, rows: int, offers: Sequence[Offer], count: int) -> float:
        """Tokens a second with proposals of `count` tokens at most."""
        tokens = rows - len(offers) + sum(expected_tokens(offer.rate, min(count, offer.tokens)) for offer in offers)
        return tokens / (self.costs.wide(rows, count + 1) + self._draft_seconds(offers, count))

    def _draft_seconds(self, offers: Sequence[Offer], count: int) -> float:
        drafted = [min(count, offer.tokens) for offer in offers if offer.is_drafted]
        if not drafted:
            return 0.0
        return max(drafted) * (self.costs.draft(len(drafted)) or 0.0)
