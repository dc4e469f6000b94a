"""What speculation knows of one row: its text, how its proposals have fared, and how many there were."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from mlx_serving.actors.generation.speculation.acceptance import DRAFT_KIND, RowAcceptance, SharedAcceptance, kind_of
from mlx_serving.actors.generation.speculation.planner import Offer
from mlx_serving.actors.generation.speculation.suffix_index import SuffixIndex
from mlx_serving.actors.messages.values import DraftCounts


@attrs.frozen
class Proposal:
    """Tokens that may come next. `is_drafted`: a draft model said them, otherwise they stand in the text."""

    tokens: list[int]
    is_drafted: bool = False
    is_predicted: bool = False
    """They are from the request's prediction."""
    is_forced: bool = False
    """What the answer is held to lets nothing else follow: no speculation at all."""


class RowSpeculation:
    """`prompt` and `prediction` in token ids. Without `looks_up` the text is not searched."""

    def __init__(
        self, prompt: Sequence[int], prediction: Sequence[int], shared: SharedAcceptance, looks_up: bool
    ) -> None:
        self.counts = DraftCounts()
        self._acceptance = RowAcceptance(shared)
        self._index = SuffixIndex(prompt, prediction) if looks_up else None
        self._followed = len(prompt)

    def follow(self, ids: Sequence[int]) -> None:
        """Take in what is new in `ids`, prompt and answer so far.

        Every token tells how good the text's proposal of it was, whether it was proposed or not.
        """
        if self._index is None:
            return
        for token in ids[self._followed :]:
            found = self._index.find()
            if found is not None:
                expected = self._index.following(found, 1)
                self._acceptance.record(kind_of(found.agreement), int(expected == [token]), 1)
            self._index.append(token)
        self._followed = len(ids)

    def lookup_offer(self, most: int) -> Offer | None:
        """What the text proposes, `most` tokens at most."""
        found = None if self._index is None else self._index.find()
        if self._index is None or found is None or most < 1:
            return None
        tokens = len(self._index.following(found, most))
        return Offer(tokens, self._acceptance.rate(kind_of(found.agreement))) if tokens else None

    def draft_offer(self, most: int) -> Offer | None:
        """What a draft model would propose."""
        return Offer(most, self._acceptance.rate(DRAFT_KIND), is_drafted=True) if most > 0 else None

    def look_up(self, most: int) -> Proposal | None:
        """The text's proposal, as `lookup_offer` promised."""
        found = None if self._index is None else self._index.find()
        if self._index is None or found is None:
            return None
        return Proposal(self._index.following(found, most), is_predicted=self._index.is_predicted(found))

    def judge(self, proposal: Proposal, accepted: int) -> None:
        """Count a proposal, and for a draft model learn from it."""
        proposed = len(proposal.tokens)
        if proposal.is_drafted:
            self._acceptance.record(DRAFT_KIND, accepted, proposed)
        rejected, predicted = proposed - accepted, int(proposal.is_predicted)
        counts = self.counts
        self.counts = DraftCounts(
            counts.accepted + accepted,
            counts.rejected + rejected,
            counts.accepted_prediction + predicted * accepted,
            counts.rejected_prediction + predicted * rejected,
        )
