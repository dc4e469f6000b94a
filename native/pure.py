"""The pure Python twin of `_accelerator`: same names, same behaviour, no compiler needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import attrs


@attrs.define
class _Node:
    """A prefix of some pattern. `depth` and `live` are in characters."""

    depth: int
    children: dict[str, _Node] = attrs.field(factory=dict)
    failure: _Node | None = None
    """The longest proper suffix of this prefix that is itself a prefix; None at the root."""
    longest: str | None = None
    """The longest pattern that ends here."""
    live: int = 0
    """Length of the longest suffix of this prefix from which some pattern can still grow."""

    def step(self, char: str) -> _Node:
        node = self
        while (following := node.children.get(char)) is None:
            if node.failure is None:
                return node
            node = node.failure
        return following


def _automaton(patterns: Sequence[str]) -> _Node:
    root = _Node(0)
    for index, pattern in enumerate(patterns):
        if not pattern:
            raise ValueError(f"stop string {index} is empty; it must have at least one character")
        node = root
        for char in pattern:
            node = node.children.setdefault(char, _Node(node.depth + 1))
        node.longest = pattern
    _link(root)
    return root


def _link(root: _Node) -> None:
    """Breadth first, so that a node's failure, which is shallower, is finished before the node."""
    queue = deque([root])
    while queue:
        node = queue.popleft()
        if node.failure is not None:
            node.longest = node.longest or node.failure.longest
            node.live = node.depth if node.children else node.failure.live
        for char, child in node.children.items():
            child.failure = node.failure.step(char) if node.failure is not None else root
            queue.append(child)


class StopMatcher:
    """Finds the first stop string in a text that arrives in pieces, holding back what may still become one.

    The match that starts earliest wins; of those that start together, the longest. How the text was cut into
    pieces never changes the result. An Aho-Corasick automaton (Aho and Corasick, 1975): linear in the text.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        """Raises ValueError for an empty stop string. No patterns: all text passes through."""
        self._node = _automaton(patterns)
        self._held = ""
        self._start = -1
        self._candidate: str | None = None
        self._matched: str | None = None

    @property
    def matched(self) -> str | None:
        """The stop string that ended the text, None as long as there was none."""
        return self._matched

    def feed(self, text: str) -> tuple[str, str | None]:
        """Take the next piece: the text that is safe to show, and the stop string once one is certain.

        The stop string and what follows it are never shown. A certain match ends the text: later pieces
        give `("", matched)`.
        """
        if self._matched is not None:
            return "", self._matched
        position = len(self._held)
        self._held += text
        for char in text:
            position += 1
            self._node = self._node.step(char)
            self._consider(position)
            if self._candidate is not None and position - self._node.live > self._start:
                return self._settle(), self._matched
        safe = position - self._node.live
        emit, self._held = self._held[:safe], self._held[safe:]
        self._start -= safe
        return emit, None

    def flush(self) -> str:
        """The text ended: what was held back and no stop string claims. `matched` is final after this."""
        if self._candidate is not None:
            return self._settle()
        held, self._held = self._held, ""
        return held

    def _consider(self, position: int) -> None:
        """Keep the pattern that ends at `position` of the held text if it starts earlier, or is longer."""
        pattern = self._node.longest
        if pattern is None:
            return
        start = position - len(pattern)
        if self._candidate is None or start <= self._start:
            self._start, self._candidate = start, pattern

    def _settle(self) -> str:
        emit, self._held = self._held[: self._start], ""
        self._matched, self._candidate = self._candidate, None
        return emit
