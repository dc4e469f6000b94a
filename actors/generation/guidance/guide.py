"""One answer's place in what it is held to."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mlx_serving.actors.errors import GenerationFailed, GuidanceInvalid, ServingError

if TYPE_CHECKING:
    import llguidance

MOST_FORCED = 32
_TOKEN_SECONDS = 0.01
_OVERTIME_SECONDS = 0.5
"""CPU time that following one answer may take beyond _TOKEN_SECONDS a token: ambiguous grammars take ever more."""


class Guide:
    """Follows one answer token by token. Made by a GuideCompiler; used on one thread, like the row it belongs to."""

    def __init__(self, matcher: llguidance.LLMatcher, field: str) -> None:
        self.matcher = matcher
        self._field = field
        self._overtime = 0.0

    def advance(self, token_id: int) -> None:
        """Take the next token of the answer.

        Raises GenerationFailed if it is not allowed here, GuidanceInvalid if following has become too much.
        """
        began = time.thread_time()
        if not self.matcher.consume_token(token_id):
            raise self.failure or GenerationFailed(f"token {token_id} is not what the answer is held to")
        self._overtime += max(0.0, time.thread_time() - began - _TOKEN_SECONDS)
        if self._overtime > _OVERTIME_SECONDS:
            text = f"{self._field}: this takes ever longer to follow: it would hold up every other answer"
            raise GuidanceInvalid(text, field=self._field)

    def forced(self) -> list[int]:
        """The tokens that must follow, as far as that is certain, `MOST_FORCED` at most. They are not taken yet."""
        token_ids: list[int] = []
        ahead = self.matcher
        while len(token_ids) < MOST_FORCED and (certain := ahead.compute_ff_tokens()):
            ahead = ahead.deep_copy() if ahead is self.matcher else ahead
            ahead.consume_token(certain[0])
            token_ids.append(certain[0])
        return token_ids

    def fitting(self, token_ids: list[int]) -> int:
        """How many of these proposed tokens, from the first, could follow."""
        return self.matcher.validate_tokens(token_ids)

    @property
    def restricts(self) -> bool:
        """Whether the next token may not be any."""
        return True

    def amend(self, mask: NDArray[np.uint32]) -> None:
        """Change this answer's row of the masks once it is filled.

        Text that is certain can be cut into tokens in several ways. Only the tokenizer's own is let through, so that
        the answer is the same whether `forced` tokens are taken in one by one or together.
        """
        certain = self.matcher.compute_ff_tokens()
        if certain:
            word, bit = certain[0] >> 5, np.uint32(1 << (certain[0] & 31))
            if mask[word] & bit:
                mask[:] = 0
                mask[word] = bit

    @property
    def is_complete(self) -> bool:
        """Nothing may follow but the end of the sequence."""
        return self.matcher.is_stopped()

    @property
    def failure(self) -> ServingError | None:
        """Why this answer cannot go on: its grammar has become too much to follow. Told by masks and `advance`."""
        if not self.matcher.is_error():
            return None
        reason = self.matcher.get_error().partition("\n")[0]
        # llguidance calls it an internal error when an expression outgrows its lexer in the middle of a token.
        if self.matcher.stop_reason() in ("ParserTooComplex", "LexerTooComplex") or reason.startswith("lexer error"):
            return GuidanceInvalid(f"{self._field}: this has become too complex to follow: {reason}", field=self._field)
        return GenerationFailed(f"{self._field}: {reason}", field=self._field)

    def copy(self) -> Guide:
        guide = Guide(self.matcher.deep_copy(), self._field)
        guide._overtime = self._overtime
        return guide

    def rollback(self, count: int) -> None:
        """Take back the last `count` tokens."""
        if count and not self.matcher.rollback(count):
            raise GenerationFailed(f"{count} tokens cannot be taken back: {self.matcher.get_error()}")
