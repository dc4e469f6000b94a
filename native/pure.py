"""The pure Python twin of `_accelerator`: same names, same behaviour, no compiler needed."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, TypeVar

import attrs

T = TypeVar("T")


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


def _byte_alphabet() -> dict[str, int]:
    """The letter that byte-level vocabularies write for each byte: itself where it is printable, else one from
    U+0100 on (`bytes_to_unicode` of GPT-2)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {**{chr(byte): byte for byte in printable}, **{chr(256 + i): byte for i, byte in enumerate(others)}}


_BYTES = _byte_alphabet()


def token_bytes(token: str) -> bytes:
    """What a token of a byte-level vocabulary stands for. One that is not in its alphabet stands for itself."""
    try:
        return bytes([_BYTES[letter] for letter in token])
    except KeyError:
        return token.encode()


def token_content(token: str) -> str | bytes:
    """Its text if that is whole characters by itself, else its bytes."""
    content = token_bytes(token)
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content


class TokenTexts:
    """The contents of the ids of one byte-level vocabulary. Each is read when it is first asked for, and kept."""

    def __init__(self, token_of: Callable[[int], str | None]) -> None:
        """`token_of` says how the vocabulary writes an id. Ids without a token have no text."""
        self._token_of = token_of
        self._contents: dict[int, str | bytes] = {}

    def content(self, token_id: int) -> str | bytes:
        """What `token_content` says of it."""
        content = self._contents.get(token_id)
        if content is None:
            content = self._contents[token_id] = token_content(self._token_of(token_id) or "")
        return content


class ByteDecoder:
    """The ids of one answer to its text, never splitting a character: a UTF-8 decoder that goes on where it was.

    All pieces together are the text of all bytes together, where each longest beginning of a character that comes to
    nothing is one U+FFFD. A piece has all characters that are complete.
    """

    def __init__(self, texts: TokenTexts, hidden: frozenset[int]) -> None:
        """`hidden`: ids without text."""
        self._texts = texts
        self._hidden = hidden
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_inside = False
        """The bytes so far end within a character."""

    def add(self, token_id: int) -> str:
        """The text that has become certain with this id, possibly none."""
        if token_id in self._hidden:
            return ""
        content = self._texts.content(token_id)
        if isinstance(content, str):
            if not self._is_inside:
                return content
            content = content.encode()
        text = self._utf8.decode(content)
        self._is_inside = self._utf8.getstate()[0] != b""
        return text

    def flush(self) -> str:
        """The rest, when no id will follow."""
        self._is_inside = False
        return self._utf8.decode(b"", final=True)


def chained_digests(seed: bytes, packed: bytes, width: int) -> list[int]:
    """A 64-bit digest for each whole block of `width` bytes: BLAKE2b (RFC 7693), salted with the digest before.

    The first block's salt is `seed`, of 8 bytes; ValueError for any other length, and for a `width` below 1.
    """
    if len(seed) != 8 or width < 1:
        raise ValueError("the seed must have 8 bytes, and a block at least one")
    digests, chain = [], seed
    for start in range(0, len(packed) - width + 1, width):
        chain = blake2b(packed[start : start + width], digest_size=8, salt=chain).digest()
        digests.append(int.from_bytes(chain, "little"))
    return digests


def unpack_rows(kind: Callable[..., T], form: str, rows: list[Any], unpack: Callable[[Any], T]) -> tuple[T, ...]:
    """The messages of one class from positional rows.

    `form` has a letter for each field: i an integer, s a text, t token ids, e an empty array, n nil. A row that is just
    so becomes a message, with tuples for its arrays; any other one is `unpack`'s, which says what is wrong with it or
    knows what else it may hold. TypeError if `rows` is no list, ValueError for another letter.
    """
    if type(rows) is not list:
        raise TypeError(f"rows must be a list, not {type(rows).__name__}")
    if not set(form) <= set("isten"):
        raise ValueError(f"the form {form!r} has a letter other than i, s, t, e and n")
    return tuple([unpack(row) for row in rows])  # in Python that is the shorter way for plain ones too
