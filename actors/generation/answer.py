"""One sequence's answer as it grows: its text, its length, and when it ends."""

from __future__ import annotations

import attrs

from mlx_serving.actors.generation.text import TextDecoder
from mlx_serving.actors.messages.values import FinishReason, SequenceEnd, Stopping
from mlx_serving.native import StopMatcher


@attrs.frozen
class Piece:
    """What one token adds. `token_ids` is empty for a token that ended the answer and is no part of it."""

    text: str
    token_ids: tuple[int, ...]
    reason: FinishReason | None = None
    matched: str | int | None = None


class Answer:
    """Decides, token by token, what is shown and whether the answer is over.

    An end-of-sequence or stop token counts in `tokens`, as it was generated, but shows neither id nor text.
    The token that completes a stop string shows its id; the text is cut before the stop string.
    """

    def __init__(self, stopping: Stopping, limit: int, eos_ids: frozenset[int], decoder: TextDecoder) -> None:
        """`limit`: the most tokens, from `max_tokens` and the context together."""
        self.tokens = 0
        self.limit = limit
        self._eos_ids = frozenset() if stopping.ignore_eos else eos_ids
        self._stop_ids = frozenset(stopping.stop_token_ids)
        self._ending_ids = self._eos_ids | self._stop_ids
        self._decoder = decoder
        self._matcher = StopMatcher(stopping.stop) if stopping.stop else None

    def add(self, token_id: int) -> Piece:
        """Take the next token. Nothing may be added after a piece with a reason."""
        self.tokens += 1
        if token_id in self._ending_ids:
            return self._end("", (), "stop", token_id if token_id in self._stop_ids else None)
        text, matched = self._shown(self._decoder.add(token_id))
        if matched is not None:
            return Piece(text, (token_id,), "stop", matched)
        if self.tokens >= self.limit:
            return self._end(text, (token_id,), "length", None)
        return Piece(text, (token_id,))

    def _shown(self, text: str) -> tuple[str, str | None]:
        return (text, None) if self._matcher is None else self._matcher.feed(text)

    def _end(self, text: str, ids: tuple[int, ...], reason: FinishReason, matched: int | None) -> Piece:
        """Give out what was held back; a stop string may turn up in it."""
        rest, found = self._shown(self._decoder.flush())
        text += rest
        if found is None and self._matcher is not None:
            text += self._matcher.flush()
            found = self._matcher.matched
        return Piece(text, ids, reason if found is None else "stop", matched if found is None else found)


@attrs.define(eq=False)
class Timeline:
    """When one sequence queued, started and said its first token, in monotonic seconds."""

    queued_at: float
    started_at: float
    first_token_at: float | None = None

    def end(self, piece: Piece, answer: Answer, prompt_tokens: int, now: float) -> SequenceEnd:
        """The account of an answer that `piece`, which has a reason, ended."""
        assert piece.reason is not None
        first = now if self.first_token_at is None else self.first_token_at
        return SequenceEnd(
            reason=piece.reason,
            prompt_tokens=prompt_tokens,
            completion_tokens=answer.tokens,
            matched=piece.matched,
            queue_seconds=max(0.0, self.started_at - self.queued_at),
            prefill_seconds=max(0.0, first - self.started_at),
            decode_seconds=max(0.0, now - first),
        )

    def end_of_prefill(self, prompt_tokens: int, cached_tokens: int, now: float) -> SequenceEnd:
        """The account of a sequence that was to be prefilled and no more."""
        return SequenceEnd(
            reason="length",
            prompt_tokens=prompt_tokens,
            completion_tokens=0,
            cached_tokens=cached_tokens,
            queue_seconds=max(0.0, self.started_at - self.queued_at),
            prefill_seconds=max(0.0, now - self.started_at),
        )
