"""Token ids to text, a token at a time, never splitting a character.

In byte-level vocabularies an id stands for the same bytes everywhere: a table and a UTF-8 decoder are enough, and are
exact (`native.ByteDecoder`). Elsewhere a window of the latest ids is decoded on each addition, and what it shows beyond
the text already given is new. Bytes that do not yet make a character decode to U+FFFD; they are held back until it is
complete. The window stays short, so the cost of a token does not grow with the text.
"""

from __future__ import annotations

from typing import Protocol

import tokenizers

from mlx_serving.actors.models.tokenizer import TextTokenizer
from mlx_serving.native import ByteDecoder

REPLACEMENT = "\ufffd"
_LONGEST_INCOMPLETE = 3
"""Bytes of a character that can be there without the last one; a decoder shows each as at most one U+FFFD."""
_WINDOW = 8
_LARGEST_WINDOW = 64
"""How long bytes that are no characters are held back: some decoders judge a run of bytes as a whole."""


class TextDecoder(Protocol):
    """What turns the ids of one answer into its text."""

    def add(self, token_id: int) -> str:
        """The text that has become certain with this id, possibly none."""
        ...

    def flush(self) -> str:
        """The rest, when no id will follow."""
        ...


def text_decoder(tokenizer: TextTokenizer, hidden_ids: frozenset[int]) -> TextDecoder:
    """The decoder for one answer. `hidden_ids` show no text."""
    if tokenizer.texts is not None:
        return ByteDecoder(tokenizer.texts, hidden_ids)
    return IncrementalDecoder(tokenizer.backend, hidden_ids)


class IncrementalDecoder:
    """For any tokenizer. All pieces of one answer together are `tokenizer.decode(ids, skip_special_tokens=True)`.

    That holds for bytes that are valid UTF-8 and, in byte-level tokenizers, for invalid ones too.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, special_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._special_ids = special_ids
        self._window: list[int] = []
        self._given = 0
        """Characters of the window's text that were given out."""
        self._text = ""

    def add(self, token_id: int) -> str:
        if token_id in self._special_ids:
            return ""
        self._window.append(token_id)
        self._text = text = self._decode(self._window)
        is_full = len(self._window) >= _LARGEST_WINDOW
        certain = _certain_length(text) if is_full else len(text.rstrip(REPLACEMENT))
        piece = text[self._given : certain]
        self._given = max(self._given, certain)
        if is_full or (len(self._window) >= _WINDOW and certain == len(text)):
            self._shorten(is_full)
        return piece

    def flush(self) -> str:
        piece = self._text[self._given :]
        self._given = len(self._text)
        return piece

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def _shorten(self, is_full: bool) -> None:
        """Keep the fewest last ids that decode to whole characters by themselves."""
        for count in range(1, _WINDOW):
            text = self._decode(self._window[-count:])
            if REPLACEMENT not in text:
                self._cut(count, text, len(text))
                return
        if is_full:
            text = self._decode(self._window[-_WINDOW:])
            self._cut(_WINDOW, text, _certain_length(text))

    def _cut(self, count: int, text: str, given: int) -> None:
        del self._window[:-count]
        self._text, self._given = text, given


def _certain_length(text: str) -> int:
    """Characters of `text` that are no part of an incomplete one, as far as a byte-level decoder goes."""
    end = len(text)
    while end > 0 and len(text) - end < _LONGEST_INCOMPLETE and text[end - 1] == REPLACEMENT:
        end -= 1
    return end
