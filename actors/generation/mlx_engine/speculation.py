"""Speculative decoding within the batch: who proposes, how much, and the step that checks it.

A row's own draw decides at every place: the token that it would have drawn there is the one that it says, and a
proposal is accepted as far as it is the same. So an answer is, token for token, the one without speculation, greedy or
sampled, and its distribution the model's own (docs/decisions tells more).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import mlx.core as mx

from mlx_serving.actors.clock import Clock
from mlx_serving.actors.generation.mlx_engine import launched_numbers
from mlx_serving.actors.generation.mlx_engine.batch import Batch
from mlx_serving.actors.generation.mlx_engine.caches import Caches
from mlx_serving.actors.generation.mlx_engine.draft_model import DraftModel
from mlx_serving.actors.generation.mlx_engine.row import Reading, Row
from mlx_serving.actors.generation.mlx_engine.rows_cache import RowsCache
from mlx_serving.actors.generation.speculation.acceptance import DRAFT_KIND, SharedAcceptance
from mlx_serving.actors.generation.speculation.costs import StepCosts
from mlx_serving.actors.generation.speculation.planner import Offer, Plan, Planner
from mlx_serving.actors.generation.speculation.row import Proposal, RowSpeculation
from mlx_serving.actors.messages.values import unpack_ids
from mlx_serving.config.schema import Generation

_log = logging.getLogger(__name__)
_MEASURED_WIDTHS = (1, 2, 3, 5, 9)
_CERTAIN = 1.0
_TYPICAL = 64
"""Tokens of an answer."""
_HEDGE = 2.0
"""Times what taking a prompt in costs that proposals have to promise: that cost is certain, and answers may end, and
machines change, before proposals have saved it."""
_PAUSE = 8
"""Steps after which it is asked again whether a draft model would save anything, once it would not: that changes
slowly, and to work it out takes a hundredth of a small model's step on a GPU."""
_TRIES = 3
"""Of each width at load; the first compiles what it needs, and the fastest counts."""


DraftMasks = Callable[[Sequence[Row], Sequence[Sequence[int]], int], mx.array | None]
"""What each row may say next and after each token of its draft, for so many places."""


@attrs.frozen(eq=False)
class Checked:
    """What a checking step gave: each row's tokens, in order, how many were proposed, and accepted of those."""

    said: list[tuple[Row, list[Reading]]] = attrs.field(factory=list)
    width: int = 1
    proposed: int = 0
    accepted: tuple[int, ...] = ()
    """Of each row with a proposal."""


@attrs.frozen(eq=False)
class _Drafted:
    """The draft model's proposals, and the probabilities that they were drawn with, in the same order."""

    tokens: dict[Row, list[int]] = attrs.field(factory=dict)
    probabilities: mx.array | None = None


class Speculator:
    """Of one model. Its costs and what it knows of acceptance outlast the rows."""

    def __init__(self, mode: str, planner: Planner, draft: DraftModel | None, clock: Clock) -> None:
        """`mode`: that of the settings."""
        self._looks_up = mode in ("lookup", "auto")
        self._draft = draft if mode in ("draft", "auto") else None
        self._planner = planner
        self._shared = SharedAcceptance()
        self._clock = clock
        self._costs = planner.costs
        self._draft_seconds = 0.0
        self._pause = 0

    def saw_step(self, rows: int, width: int, seconds: float) -> None:
        """A step took so long that had `width` tokens in each row; if more than one, it was the last check."""
        if width == 1:
            self._costs.saw_plain(rows, seconds)
        else:
            self._costs.saw_wide(rows, width, max(0.0, seconds - self._draft_seconds))

    def plan(self, rows: Sequence[Row], budget: int) -> Plan | None:
        """Whether and how to propose in the next step, by what the host knows of the rows.

        `budget`: prompt tokens that the draft model may prefill beside it.
        """
        known = [self._known(row) for row in rows]
        forced = [_forced(row)[1:] for row in rows]  # the first is on its way by now
        if not any(known) and not any(forced):
            return None
        most = [min(self._planner.longest, _room(row)) for row in rows]
        lookups = _offers(known, forced, most)
        choices: list[list[Offer | None]] = [lookups]
        if self._draft is not None:
            self._prepare(self._draft, rows, known, budget)
            choices.append(
                [
                    _better(lookup, each.draft_offer(length) if each and self._is_ready(row) else None)
                    for row, each, lookup, length in zip(rows, known, lookups, most, strict=True)
                ]
            )
        return self._planner.plan(choices)

    def check(self, batch: Batch, plan: Plan, masks_of: DraftMasks) -> Checked | None:
        """Propose, check and settle; None if no row has anything to propose after all. Waits for the device."""
        self._draft_seconds = 0.0
        batch.reserve(batch.cache.padded(plan.tokens + 1))
        proposals, drafted = self._proposals(batch.rows, plan)
        width = 1 + max((len(each.tokens) for each in proposals if each), default=0)
        if width == 1:
            return None
        width = batch.cache.padded(width)
        drafts = [each.tokens if each else [] for each in proposals]
        masks = masks_of(batch.rows, drafts, width)
        padded = launched_numbers.table(drafts, width - 1)
        check = batch.check(padded, list(map(len, drafts)), masks, _spread(drafted, batch.rows, width - 1))
        said = check.read()
        batch.settle(check, [len(tokens) for tokens in said])
        accepted = []
        for row, proposal, tokens in zip(check.rows, proposals, said, strict=True):
            if proposal is not None and not proposal.is_forced and row.speculation is not None:
                row.speculation.judge(proposal, len(tokens) - 1)
                accepted.append(len(tokens) - 1)
        proposed = sum(len(each.tokens) for each in proposals if each is not None and not each.is_forced)
        return Checked(list(zip(check.rows, said, strict=True)), width, proposed, tuple(accepted))

    def clear(self) -> None:
        """No row is left, or what is held of them cannot be trusted."""
        if self._draft is not None:
            self._draft.clear()

    def _known(self, row: Row) -> RowSpeculation | None:
        """What speculation knows of a row, up to date; None if the row is not for it."""
        is_masked_later = row.guide is not None and row.answer.is_thinking
        if not row.sequence.speculation or row.sequence.sampling.logprobs or is_masked_later:
            return None
        if row.speculation is None:
            prompt, prediction = row.ids[: row.prompt_tokens], unpack_ids(row.sequence.prediction_ids)
            row.speculation = RowSpeculation(prompt, prediction, self._shared, self._looks_up)
        row.speculation.follow(row.ids)
        return row.speculation

    def _is_ready(self, row: Row) -> bool:
        return self._draft is not None and self._draft.is_ready(row)

    def _prepare(
        self, draft: DraftModel, rows: Sequence[Row], known: Sequence[RowSpeculation | None], budget: int
    ) -> None:
        """Let the draft model follow the rows as long as its proposals are likely to be taken up, each from when they
        are likely to save twice the time that taking in its prompt costs.

        Otherwise it takes no others up, and loses those that it has once they are too far ahead.
        """
        wanted = [row for row, each in zip(rows, known, strict=True) if each is not None]
        saving = self._saving(known)
        if saving:
            wanted = [row for row in wanted if _HEDGE * draft.seconds_behind(row) <= saving * _to_come(row)]
        else:
            wanted = [row for row in wanted if draft.is_close(row)]
            self._shared.fade(DRAFT_KIND)
        try:
            draft.follow(wanted, budget)
        except Exception:
            self._give_up()

    def _saving(self, known: Sequence[RowSpeculation | None]) -> float:
        """What the draft model's proposals to these rows would save, as far as is known of them all; once that is
        nothing, it is for the next steps."""
        if self._pause:
            self._pause -= 1
            return 0.0
        best = Offer(self._planner.longest, self._shared.rate(DRAFT_KIND), is_drafted=True)
        saving = self._planner.saving([best if each is not None else None for each in known])
        self._pause = 0 if saving else _PAUSE - 1
        return saving

    def _give_up(self) -> None:
        """The draft model failed: go on without it."""
        _log.exception("the draft model failed and is left out from now on")
        self._draft = None

    def _proposals(self, rows: Sequence[Row], plan: Plan) -> tuple[list[Proposal | None], _Drafted]:
        known = [self._known(row) for row in rows]
        forced = [_forced(row) for row in rows]
        most = [min(plan.tokens, _room(row)) for row in rows]
        lookups = _offers(known, forced, most)
        drafted = self._drafted(rows, known, lookups, most) if plan.choice == 1 else _Drafted()
        proposals: list[Proposal | None] = []
        for row, each, certain, lookup, length in zip(rows, known, forced, lookups, most, strict=True):
            if certain:
                proposals.append(Proposal(certain[:length], is_forced=True) if length > 0 else None)
            elif row in drafted.tokens:
                proposals.append(Proposal(drafted.tokens[row][:length], is_drafted=True))
            else:
                proposals.append(each.look_up(length) if each is not None and lookup is not None else None)
        return proposals, drafted

    def _drafted(
        self,
        rows: Sequence[Row],
        known: Sequence[RowSpeculation | None],
        lookups: Sequence[Offer | None],
        most: Sequence[int],
    ) -> _Drafted:
        """The draft model's proposals for the rows whose text has nothing better."""
        asking = []
        for row, each, lookup, length in zip(rows, known, lookups, most, strict=True):
            offer = each.draft_offer(length) if each is not None and self._is_ready(row) else None
            if offer is not None and _better(lookup, offer) is offer:
                asking.append(row)
        if self._draft is None or not asking:
            return _Drafted()
        count = max(length for row, length in zip(rows, most, strict=True) if row in asking)
        before = self._clock()
        try:
            proposed = self._draft.propose(asking, count)
        except Exception:
            self._give_up()
            return _Drafted()
        self._draft_seconds = self._clock() - before
        self._costs.saw_draft(len(asking), count, self._draft_seconds)
        return _Drafted(dict(zip(asking, proposed.tokens, strict=True)), proposed.probabilities)


def speculator_for(
    settings: Generation,
    cache: RowsCache,
    model: Any,
    caches: Caches,
    draft: DraftModel | None,
    clock: Clock,
) -> Speculator | None:
    """None where speculation is off, or the rows' caches cannot be rolled back. `caches` are new ones of a row."""
    chosen = settings.speculation
    if chosen.mode == "off" or not cache.can_roll_back:
        return None
    model(mx.zeros((1, 8), dtype=mx.int32), cache=caches)
    costs = measured_costs(cache, caches, clock)
    if draft is not None:
        costs.saw_draft(1, 1, draft.measure(clock))
    longest = min(chosen.max_tokens, cache.widest - 1)
    ring = settings.metal_optimizations.command_buffer_ring
    padded = cache.fresh().padded  # that of `cache` would keep its slabs when another takes its place
    return Speculator(chosen.mode, Planner(costs, longest, padded, ring + 1), draft, clock)


def measured_costs(cache: RowsCache, caches: Caches, clock: Clock) -> StepCosts:
    """Time passes of one row with a few tokens in its caches, for several widths."""
    cache = cache.fresh()
    cache.join([caches])
    curve: dict[int, float] = {}
    for width in _MEASURED_WIDTHS:
        cache.reserve(width)
        for _ in range(_TRIES):
            before = clock()
            mx.eval(mx.argmax(cache.forward(mx.zeros((1, width), dtype=mx.int32)), axis=-1))
            cache.drop([width])
            curve[width] = min(curve.get(width, math.inf), clock() - before)
    return StepCosts(curve)


def _spread(drafted: _Drafted, rows: Sequence[Row], width: int) -> mx.array | None:
    """The probabilities [rows, width, vocabulary] of every row in the batch, 0 for those that were not drafted for."""
    given = drafted.probabilities
    if given is None:
        return None
    given = mx.pad(given[:, :width], [(0, 0), (0, max(0, width - given.shape[1])), (0, 0)])
    spread = mx.zeros((len(rows), width, given.shape[2]))
    spread[mx.array([rows.index(row) for row in drafted.tokens])] = given
    return spread


def _forced(row: Row) -> list[int]:
    """What the row's guide leaves no choice about."""
    return row.guide.forced() if row.guide is not None and not row.sequence.sampling.logprobs else []


def _offers(
    known: Sequence[RowSpeculation | None], forced: Sequence[list[int]], most: Sequence[int]
) -> list[Offer | None]:
    """What costs nothing to propose: what must follow, or else what follows in the text."""
    offers: list[Offer | None] = []
    for each, certain, length in zip(known, forced, most, strict=True):
        if certain and length > 0:
            offers.append(Offer(min(len(certain), length), _CERTAIN))
        else:
            offers.append(None if each is None else each.lookup_offer(length))
    return offers


def _room(row: Row) -> int:
    """Tokens that may be proposed to a row: one more than that is drawn in any case."""
    return row.answer.limit - (len(row.ids) - row.prompt_tokens) - 1


def _to_come(row: Row) -> int:
    """Tokens that the row is taken to say yet: as many as it has said, as nothing else is known of its length, but no
    fewer than most answers have."""
    return min(_room(row), max(_TYPICAL, len(row.ids) - row.prompt_tokens))


def _better(lookup: Offer | None, draft: Offer | None) -> Offer | None:
    """Proposals of the text cost nothing: those of the draft model have to be more likely."""
    if lookup is None or draft is None:
        return lookup or draft
    return draft if draft.rate > lookup.rate else lookup
