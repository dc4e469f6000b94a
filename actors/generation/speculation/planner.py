"""How many tokens to propose to each row in the next step. Pure: estimates in, lengths out.

All rows of a batch take the same forward pass, as wide as the longest proposal, so the width is chosen for the batch:
the one that promises most tokens a second. No proposal is one of the choices, and it wins unless another is better
by a margin. While it wins, a short proposal is tried from time to time, ever more rarely while that is no better,
so that a mistaken estimate mends and costs next to nothing. While it does not win, a few plain steps are put in as
rarely, so that what proposals are compared with is true.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs

from mlx_serving.actors.generation.speculation.acceptance import expected_tokens
from mlx_serving.actors.generation.speculation.costs import StepCosts

MARGIN = 1.06
"""Tokens a second that proposing must promise, as a multiple of plain decoding."""
PROBE_TOKENS = 2
_FIRST_PROBE, _RAREST_PROBE = 64, 2048
"""Plain steps before a probe."""
_FIRST_AUDIT, _RAREST_AUDIT = 8, 128
"""Steps with proposals before plain ones are put in."""


@attrs.frozen
class Offer:
    """What a row could propose: so many tokens, each accepted with probability `rate` after those before it.

    `is_drafted`: a draft model would have to be run for them.
    """

    tokens: int
    rate: float
    is_drafted: bool = False


Offers = Sequence[Offer | None]
"""One a row; None: it has nothing to propose."""


@attrs.frozen
class Plan:
    """Which of the choices to take, and the most tokens to propose to any row."""

    choice: int
    tokens: int


@attrs.define(eq=False)
class Planner:
    """One per model. `longest`: most tokens proposed to a row at once. `padded`: the tokens a row of the pass that is
    run where so many are needed. `audit_steps`: plain steps in a row of which the last one's time is a plain step's."""

    costs: StepCosts
    longest: int
    padded: Callable[[int], int] = int
    audit_steps: int = 3
    _quiet: int = 0
    """Plain steps since the last proposal, while some row had an offer."""
    _patience: int = _FIRST_PROBE
    _busy: int = 0
    """Steps with proposals since the last audit."""
    _trust: int = _FIRST_AUDIT

    def plan(self, choices: Sequence[Offers]) -> Plan | None:
        """The best of several ways to propose, all of the same rows; None: decode plainly."""
        plans = [plan for number, offers in enumerate(choices) for plan in self._lengths(number, offers)]
        if not plans:
            return None
        best = max(plans, key=lambda plan: self._speed(choices[plan.choice], plan.tokens))
        offers = choices[best.choice]
        if self._speed(offers, best.tokens) >= MARGIN * self._plain_speed(len(offers)):
            self._quiet, self._patience = 0, _FIRST_PROBE
            return None if self._audits() else best
        self._busy, self._trust = 0, _FIRST_AUDIT
        self._quiet += 1
        if self._quiet < self._patience:
            return None
        self._quiet, self._patience = 0, min(2 * self._patience, _RAREST_PROBE)
        return attrs.evolve(best, tokens=min(_longest(offers), PROBE_TOKENS))

    def _audits(self) -> bool:
        """Whether a step that would have proposals is to be a plain one."""
        self._busy += 1
        if self._busy <= self._trust:
            return False
        if self._busy == self._trust + self.audit_steps:
            self._busy, self._trust = 0, min(2 * self._trust, _RAREST_AUDIT)
        return True

    def saving(self, offers: Offers) -> float:
        """Seconds that these would save for each token of the batch; 0 where they would not be taken up."""
        plain = self._plain_speed(len(offers))
        best = max((self._speed(offers, plan.tokens) for plan in self._lengths(0, offers)), default=0.0)
        return 1 / plain - 1 / best if best >= MARGIN * plain else 0.0

    def _lengths(self, number: int, offers: Offers) -> list[Plan]:
        return [Plan(number, tokens) for tokens in range(1, min(self.longest, _longest(offers)) + 1)]

    def _plain_speed(self, rows: int) -> float:
        return rows / self.costs.plain(rows)

    def _speed(self, offers: Offers, count: int) -> float:
        """Tokens a second with proposals of `count` tokens at most."""
        tokens = sum(1.0 if each is None else expected_tokens(each.rate, min(count, each.tokens)) for each in offers)
        return tokens / (self.costs.wide(len(offers), self.padded(count + 1)) + self._draft_seconds(offers, count))

    def _draft_seconds(self, offers: Offers, count: int) -> float:
        drafted = [min(count, each.tokens) for each in offers if each is not None and each.is_drafted]
        if not drafted:
            return 0.0
        return max(drafted) * (self.costs.draft(len(drafted)) or 0.0)


def _longest(offers: Offers) -> int:
    return max((each.tokens for each in offers if each is not None), default=0)
