"""How many prompt tokens may go between two decode steps, so that running streams hardly notice. Pure.

A chunk costs something to begin (on a GPU the host sends off as many operations for 16 tokens as for 500) and
something for each of its tokens. Both are estimated from the steps themselves. The budget is what keeps a step within
its target; but never less than costs little beside the beginning, for a smaller chunk would hold the streams up as long
and the prompt far longer. While the target is missed whatever the size, a larger chunk is tried from time to time, ever
more rarely: sizes that are all alike do not tell beginning and tokens apart.

Where chunks cost nothing to begin, all of this falls away: the budget is what is left of a step's target. Where it was
timed what chunks of some widths take, there is no line either: a chunk costs what the next width does, and a little
wider may be far dearer, as where other kernels take it.

While one prompt follows the other, no step is without. Where none ever was, or many more or fewer rows decode by then
than in the last one that was, a few steps now and then get no prompt tokens, so that the target is that of these rows.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import attrs

_START_TOKENS = 64
_SMOOTHING = 0.2
_LARGEST_CUT = 0.5
_LARGEST_RISE = 2.0
_USED_SHARE = 0.5
"""A step that took less of its budget than this says nothing about the budget."""
_BESIDE_BEGINNING = 0.25
"""What the tokens of a chunk may cost in any case, as a part of what it costs to begin one."""
_BESIDE_LEAST = 0.15
"""What a chunk may cost in any case besides the least one, as a part of that, where it was timed: a prompt goes in ten
times as fast by chunks that are ten times as wide and cost little more. With 0.25 an H200's steps became 3 times as
long by chunks of 128 tokens, where those of 32 leave them at 2.5 times."""
_MEMORY = 0.9
"""What each chunk leaves of the weight of those before it."""
_LEAST_VARIANCE = 0.01
"""Of chunk sizes, in units of their mean squared: below it they do not tell beginning and tokens apart."""
_LARGEST_SHARE = 0.98
_FEW_TOKENS = 32
"""Of a chunk of which nearly all is what it costs to begin."""
_FEW_BEFORE = 512
"""Tokens before a chunk that cost next to nothing to attend to."""
_LITTLE_ATTENDED = 512 * 2048
"""Places of a chunk times tokens before it: one with so many counts as much as that nothing was known."""
_FIRST_TRIAL, _RAREST_TRIAL = 16, 256
"""Chunks that miss the target before a larger one is tried."""
_EASILY = 0.7
"""What the least chunk takes of what there is where the target is met by more than chance."""
_ALIKE = 1.5
"""Steps of so many times as many rows, or as few, count as one kind."""
_BESIDE_OLD, _MOST_PLAIN = 32, 4
"""Steps with prompt tokens before some without, where the last of these had other rows; how many there are at most: the
first one's time may not count."""
_SURPRISE = 2.0
"""How many times longer or shorter than expected a step is that cannot be true. Changes of the budget are no larger, so
a mistaken line alone does not lead there."""

_IDLE_SECONDS = 0.25
"""What a chunk may take while nothing decodes."""
_FIRST_IDLE_TOKENS, _LARGEST_IDLE_RISE = 256, 4.0


@attrs.define
class LineCost:
    """Seconds that a chunk adds to a step: a line through what was seen, older chunks counting less and less.

    Without `begins` it goes through zero.
    """

    begins: bool = True
    _weight: float = 0.0
    _tokens: float = 0.0
    _seconds: float = 0.0
    _squares: float = 0.0
    _products: float = 0.0
    _share: float = 0.0
    """What the beginning makes of a chunk of mean size."""

    def add(self, tokens: int, seconds: float, before: int = 0) -> None:
        """A chunk of so many tokens made a step so much longer, behind `before` others, which are not told apart."""
        new = (1.0, tokens, seconds, tokens * tokens, tokens * seconds)
        old = (self._weight, self._tokens, self._seconds, self._squares, self._products)
        sums = [_MEMORY * before + now for before, now in zip(old, new, strict=True)]
        self._weight, self._tokens, self._seconds, self._squares, self._products = sums
        variance = self._squares / self._weight - self._mean_tokens**2
        if self.begins and self._seconds > 0 and variance > _LEAST_VARIANCE * self._mean_tokens**2:
            slope = (self._products / self._weight - self._mean_tokens * self._mean_seconds) / variance
            share = 1.0 - slope * self._mean_tokens / self._mean_seconds
            self._share = min(_LARGEST_SHARE, max(0.0, share))

    def of(self, tokens: int, before: int = 0) -> float | None:
        """What such a chunk is expected to add; None if none was seen."""
        return self._beginning + tokens * self._token if self._weight else None

    def fitting(self, seconds: float, most: int) -> float:
        """Tokens, at most so many, of a chunk that may make a step so much longer, or little more than any does."""
        if not self._token:
            return most
        return max((seconds - self._beginning) / self._token, _BESIDE_BEGINNING * self._beginning / self._token)

    def anew(self) -> LineCost:
        return LineCost(self.begins)

    @property
    def _beginning(self) -> float:
        """Of any chunk."""
        return self._share * self._mean_seconds

    @property
    def _token(self) -> float:
        """Of each token more."""
        return (1.0 - self._share) * self._mean_seconds / self._mean_tokens

    @property
    def _mean_tokens(self) -> float:
        return self._tokens / self._weight

    @property
    def _mean_seconds(self) -> float:
        return self._seconds / self._weight


@attrs.define
class TimedCost:
    """What chunks of some widths were timed to take with nothing before them; others are made up to the next width.

    What chunks take longer that have little before them, or are small, is the host's: it has become slower. What others
    do besides grows with their width and with the tokens `before` them, to which they attend. That is the device's, and
    stays as it was found where the host is judged anew. The more a chunk attends to, the more it counts: of a prompt
    whose beginning is cached the first one tells nearly all, where of others it would tell what the host did meanwhile.
    """

    timed: dict[int, float]
    """Seconds of each width, in ascending order; no width takes longer than a greater one."""
    _products: float = 0.0
    _squares: float = float(_LITTLE_ATTENDED) ** 2
    """Sums over chunks: of what attending took times places times tokens before them, and of the latter squared."""
    _slower: float = 1.0

    @classmethod
    def of_times(cls, times: Sequence[tuple[int, float]]) -> TimedCost:
        """From widths and seconds, any number of each width."""
        found: dict[int, float] = {}
        least = math.inf
        for width in sorted({width for width, _ in times}, reverse=True):
            least = min(least, statistics.median_low(seconds for each, seconds in times if each == width))
            found[width] = least
        return cls(dict(reversed(found.items())))

    def add(self, tokens: int, seconds: float, before: int = 0) -> None:
        width = self._width(tokens)
        if tokens <= _FEW_TOKENS or before < _FEW_BEFORE:
            now = max(0.0, seconds - self._attended(width, before)) / self._timed(width)
            self._slower += _SMOOTHING * (now - self._slower)
        else:
            attended = float(width * before)
            took = seconds - self._slower * self._timed(width)
            self._products = _MEMORY * self._products + took * attended
            self._squares = _MEMORY * self._squares + attended * attended

    def of(self, tokens: int, before: int = 0) -> float:
        width = self._width(tokens)
        return self._slower * self._timed(width) + self._attended(width, before)

    def fitting(self, seconds: float, most: int, before: int) -> int:
        """The greatest width, up to `most`, that may make a step so much longer behind so many tokens, or little more
        than the least does."""
        allowed = max(seconds, (1 + _BESIDE_LEAST) * self.of(1, before))
        fitting = (width for width in self.timed if width <= most and self.of(width, before) <= allowed)
        return max(fitting, default=self.least)

    @property
    def least(self) -> int:
        """The least width."""
        return min(self.timed)

    def anew(self) -> TimedCost:
        return TimedCost(self.timed, self._products, self._squares)

    def _attended(self, width: int, before: int) -> float:
        return max(0.0, self._products / self._squares) * width * before

    def _width(self, tokens: int) -> int:
        return next((width for width in self.timed if width >= tokens), tokens)

    def _timed(self, width: int) -> float:
        """Of a width, or as many times the greatest one as it takes."""
        greatest = max(self.timed)
        return self.timed[width] if width in self.timed else self.timed[greatest] * width / greatest


class PrefillPace:
    """A budget that is set after every step with prefill, by how long that step took. Each change is bounded."""

    def __init__(
        self, slowdown: float, least: int, most: int, longest_seconds: float = 0.0, begins: bool = True
    ) -> None:
        """A step with prefill may take `slowdown` times a step without, and not more than `longest_seconds` if that
        is not 0, as far as chunks of at least `least` tokens allow. `begins`: it costs something to begin one."""
        self._slowdown = slowdown
        self._least = least
        self._most = most
        self._longest_seconds = longest_seconds
        self._plain: float | None = None
        self._plain_rows = 1
        self._beside_old = 0
        self._cost: LineCost | TimedCost = LineCost(begins)
        self._is_first = True
        self._doubted = 0
        """Tokens of a chunk that took longer than can be true, and has to do so again to be believed."""
        self._is_careful = False
        """The chunk seen last was one."""
        self._missed = 0
        self._patience = _FIRST_TRIAL
        self.budget = max(least, min(_START_TOKENS, most)) if begins else least

    def expect(self, costs: Sequence[tuple[int, float]]) -> None:
        """Chunks of so many tokens took so many seconds by themselves, with nothing before them: then there is little
        to try out."""
        self._cost, self._is_first = TimedCost.of_times(costs), False

    def allowance(self, rows: int, before: int = 0) -> int:
        """Prompt tokens that may go beside the next step of so many rows; `before`: those of the same prompt that have
        gone."""
        target = self._target()
        if isinstance(self._cost, TimedCost) and target is not None:
            width = self._cost.fitting(target - (self._plain or 0.0), self._most, before)
            self.budget = min(self._most, max(self._least, self._cost.least if self._is_careful else width))
        if self._was_plain(rows):
            self._beside_old = 0
            return self.budget
        self._beside_old += 1
        if self._beside_old == _BESIDE_OLD + _MOST_PLAIN:
            self._beside_old = 0
        return self.budget if self._beside_old < _BESIDE_OLD else 0

    def observe(self, seconds: float, prefilled: int, rows: int = 1, before: int = 0) -> None:
        """A step of so many rows took so long, with so many prompt tokens in it, that had `before` others before
        them."""
        if prefilled == 0:
            known = self._plain if self._plain is not None and self._was_plain(rows) else seconds
            self._plain_rows = rows
            self._plain = known + _SMOOTHING * (min(seconds, _SURPRISE * known) - known)
            return
        target = self._target()
        if target is None or prefilled < _USED_SHARE * self.budget:
            return
        if self._is_first:  # it compiles and loads what those after it find
            self._is_first = False
            return
        plain = self._plain or 0.0
        if not self._is_credible(seconds, prefilled, before):
            return
        self._cost.add(prefilled, max(0.0, seconds - plain), before)
        if isinstance(self._cost, TimedCost):
            return
        fitting = self._cost.fitting(target - plain, self._most)
        wanted = _LARGEST_RISE * prefilled if self._tries(self._cost, target - plain) else fitting
        wanted = min(_LARGEST_RISE * prefilled, max(_LARGEST_CUT * prefilled, wanted))
        self.budget = min(self._most, max(self._least, round(wanted)))

    def _was_plain(self, rows: int) -> bool:
        """Whether the last step without prompt tokens was one of about so many rows."""
        is_known = self._plain is not None
        return is_known and self._plain_rows <= _ALIKE * rows and rows <= _ALIKE * self._plain_rows

    def _is_credible(self, seconds: float, prefilled: int, before: int) -> bool:
        """Whether such a step is to be counted. What else the machine does makes a step longer, never shorter: a long
        one has to come twice, after a short one nothing before it holds. Where the least chunk follows the one in
        doubt, that it takes as long as it should says nothing about that."""
        expected = self._cost.of(prefilled, before)
        self._is_careful = False
        if expected is None:
            return True
        expected += self._plain or 0.0
        is_long = seconds > _SURPRISE * expected
        if is_long and not self._doubted:
            self._doubted, self._is_careful = prefilled, True
            return False
        if is_long or seconds * _SURPRISE < expected:
            self._cost = self._cost.anew()
        if is_long or prefilled >= self._doubted or isinstance(self._cost, LineCost):
            self._doubted = 0
        return True

    def _tries(self, cost: LineCost, seconds: float) -> bool:
        """Whether to take a larger chunk than is wanted, for even the least one makes a step too long."""
        if not cost.begins:
            return False
        least = cost.of(self._least)
        if least is None or least <= seconds:
            self._missed = 0
            if least is not None and least <= _EASILY * seconds:
                self._patience = _FIRST_TRIAL
            return False
        self._missed += 1
        if self._missed < self._patience:
            return False
        self._missed, self._patience = 0, min(2 * self._patience, _RAREST_TRIAL)
        return True

    def _target(self) -> float | None:
        if self._plain is None:
            return self._longest_seconds or None
        wanted = self._slowdown * self._plain
        return min(wanted, self._longest_seconds) if self._longest_seconds else wanted


class IdlePace:
    """How many prompt tokens go through at once while nothing decodes: what comes in meanwhile waits for them."""

    def __init__(self, least: int, most: int) -> None:
        self._least = least
        self._most = most
        self.budget = max(least, min(_FIRST_IDLE_TOKENS, most))

    def observe(self, seconds: float, tokens: int) -> None:
        """So many tokens took so long."""
        wanted = tokens * _IDLE_SECONDS / seconds if seconds > 0 else self._most
        wanted = min(_LARGEST_IDLE_RISE * self.budget, max(_LARGEST_CUT * self.budget, wanted))
        self.budget = min(self._most, max(self._least, round(wanted)))
