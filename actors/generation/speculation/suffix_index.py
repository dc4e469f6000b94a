"""Where the last tokens of a text occurred before, and what followed them there: drafts without a draft model.

The text is one list: what was given (prediction and prompt) and the answer as it grows. An occurrence is found by its
last `GRAM` tokens: in the given part by binary search over its sorted n-grams, made once; in the answer by a table
that grows with it. Of the latest occurrences the one that agrees furthest back is followed, and as long as the
answer goes on as it did, nothing is searched again. So a token costs a bounded amount of work.

Where a followed occurrence ends in a difference, as at an edit, one agreeing token close by is enough to go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import attrs
import numpy as np
from numpy.typing import NDArray

GRAM = 3
"""Tokens that an occurrence must share with the end of the text."""
LONGEST = 32
"""Agreement is not measured any further back."""
_CANDIDATES = 8
_ID_BITS = 21
"""Three ids fit into 63 bits; a larger one is cut, which costs a comparison and nothing else."""
_ID_MASK = (1 << _ID_BITS) - 1
_NEAR_BACK, _NEAR_AHEAD = 4, 24
"""Where an occurrence that was followed is looked for again after a difference."""
_TRIES_NEAR = 8
"""Tokens after a difference during which it is."""
_NO_TOKEN = -1


@attrs.frozen
class Occurrence:
    """`position` of the token that followed; `agreement`: equal tokens before it, `LONGEST` at most."""

    position: int
    agreement: int


class SuffixIndex:
    """The text of one row. `prediction` is what the answer may repeat, and where it is expected to begin."""

    def __init__(self, prompt: Sequence[int], prediction: Sequence[int] = ()) -> None:
        self._text = [*prediction, _NO_TOKEN, *prompt]
        self._predicted = len(prediction)
        self._given: GivenGrams | None = None
        self._grown: dict[int, list[int]] = {}
        self._start = len(self._text)
        self._current = Occurrence(0, GRAM) if prediction else None
        self._lost: int | None = None
        self._tries = 0
        self._is_searched = bool(prediction)

    def append(self, token: int) -> None:
        """The answer goes on with `token`."""
        current = self._current
        self._text.append(token)
        if current is not None and self._text[current.position] == token:
            self._current = Occurrence(current.position + 1, min(current.agreement + 1, LONGEST))
        else:
            if current is not None:
                self._lost, self._tries = current.position, _TRIES_NEAR
            self._current = None
            self._is_searched = False
        self._learn()

    def find(self) -> Occurrence | None:
        """The best occurrence of the end of the text. Searched at most once a token, if at all."""
        if not self._is_searched:
            self._is_searched = True
            self._current = self._search()
        if self._current is None or self._text[self._current.position] == _NO_TOKEN:
            return None
        return self._current

    def following(self, occurrence: Occurrence, count: int) -> list[int]:
        """At most `count` tokens that followed there. One that reaches the end of the text repeats itself."""
        tokens: list[int] = []
        end, position = len(self._text), occurrence.position
        while len(tokens) < count:
            token = self._text[position] if position < end else tokens[position - end]
            if token == _NO_TOKEN:
                break
            tokens.append(token)
            position += 1
        return tokens

    def is_predicted(self, occurrence: Occurrence) -> bool:
        """Whether it is in the prediction."""
        return occurrence.position < self._predicted

    def _learn(self) -> None:
        """The n-gram that ends before the newest token has something that follows it now."""
        end = len(self._text) - 1
        if end >= max(self._start, GRAM):
            self._grown.setdefault(_key(self._text, end), []).append(end)

    def _search(self) -> Occurrence | None:
        near = self._search_near()
        if near is not None:
            return near
        end = len(self._text)
        if end < GRAM:
            return None
        key = _key(self._text, end)
        if self._given is None:
            self._given = GivenGrams(self._text[: self._start])
        newest = islice(reversed(self._grown.get(key, ())), _CANDIDATES)
        found = [Occurrence(each, self._agreement(each)) for each in (*newest, *self._given.ends_of(key))]
        # The prediction goes first among equals; then what is latest.
        best = max(found, key=lambda each: (each.agreement, self.is_predicted(each), each.position), default=None)
        return best if best is not None and best.agreement >= GRAM else None

    def _search_near(self) -> Occurrence | None:
        """After a difference: the place closest to it that agrees on most."""
        if self._lost is None:
            return None
        lost, self._tries = self._lost, self._tries - 1
        first, last = max(1, lost - _NEAR_BACK), min(lost + _NEAR_AHEAD, len(self._text) - 1)
        token = self._text[-1]
        found = [
            Occurrence(each, self._agreement(each)) for each in range(first, last + 1) if self._text[each - 1] == token
        ]
        best = max(found, key=lambda each: (each.agreement, -abs(each.position - lost)), default=None)
        if best is not None or not self._tries:
            self._lost = None
        return best

    def _agreement(self, position: int) -> int:
        text, end = self._text, len(self._text)
        most = min(LONGEST, position)
        for back in range(1, most + 1):
            if text[position - back] != text[end - back]:
                return back - 1
        return most


class GivenGrams:
    """The n-grams of a text that does not change, sorted."""

    def __init__(self, text: Sequence[int]) -> None:
        ids: NDArray[np.int64] = np.asarray(text, dtype=np.int64) & _ID_MASK
        count = max(0, len(ids) - GRAM)
        keys = np.zeros(count, dtype=np.int64)
        for offset in range(GRAM):
            keys = (keys << _ID_BITS) | ids[offset : offset + count]
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        self._ends = order + GRAM

    def ends_of(self, key: int) -> list[int]:
        """Where the latest of these n-grams end, latest first."""
        first, last = (int(np.searchsorted(self._keys, key, side)) for side in ("left", "right"))
        ends: list[int] = self._ends[max(first, last - _CANDIDATES) : last][::-1].tolist()
        return ends


def _key(text: Sequence[int], end: int) -> int:
    """Of the n-gram that ends before `end`."""
    key = 0
    for token in text[end - GRAM : end]:
        key = (key << _ID_BITS) | (token & _ID_MASK)
    return key
