"""One sequence's answer as it grows: its text, its length, and when it ends."""

from __future__ import annotations

import attrs

from mlx_serving.actors.generation.channels import Channels
from mlx_serving.actors.generation.text import TextDecoder
from mlx_serving.actors.messages.admission import SequenceOutput
from mlx_serving.actors.messages.hot import hot
from mlx_serving.actors.messages.values import (
    AnswerFormat,
    FinishReason,
    SequenceEnd,
    Stopping,
    TokenLogprob,
    ToolCallPart,
)


@hot
class Piece:
    """What one token adds. `token_ids` is empty for a token that ended the answer and is no part of it."""

    text: str
    token_ids: tuple[int, ...]
    reason: FinishReason | None = None
    matched: str | int | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCallPart, ...] = ()


class Answer:
    """Decides, token by token, what is shown and whether the answer is over.

    An end-of-sequence or stop token counts in `tokens`, as it was generated, but shows neither id nor text.
    The token that completes a stop string shows its id; the text is cut before the stop string.
    """

    def __init__(
        self,
        stopping: Stopping,
        limit: int,
        eos_ids: frozenset[int],
        decoder: TextDecoder,
        form: AnswerFormat | None = None,
    ) -> None:
        """`limit`: the most tokens, from `max_tokens` and the context together. `form`: what the text is made of."""
        self.tokens = 0
        self.reasoning_tokens = 0
        """Those of the reasoning with its markers."""
        self.limit = limit
        self._eos_ids = frozenset() if stopping.ignore_eos else eos_ids
        self._stop_ids = frozenset(stopping.stop_token_ids)
        self._ending_ids = self._eos_ids | self._stop_ids
        self._decoder = decoder
        self._channels = Channels(stopping.stop, form) if stopping.stop or form is not None else None

    @property
    def is_thinking(self) -> bool:
        """Whether what comes next is reasoning."""
        return self._channels is not None and self._channels.is_thinking

    def add(self, token_id: int, is_complete: bool = False) -> Piece:
        """Take the next token. Nothing may be added after a piece with a reason.

        `is_complete`: what the answer is held to lets nothing follow.
        """
        self.tokens += 1
        if token_id in self._ending_ids:
            return self._end("", (), "stop", token_id if token_id in self._stop_ids else None)
        text = self._decoder.add(token_id)
        if is_complete:
            return self._end(text, (token_id,), "stop", None)
        if self.tokens >= self.limit:
            return self._end(text, (token_id,), "length", None)
        if self._channels is None:
            return Piece(text, (token_id,))
        was_thinking = self._channels.is_thinking
        shown = self._channels.feed(text)
        self.reasoning_tokens += was_thinking or self._channels.is_thinking
        reason: FinishReason | None = None if shown.matched is None else "stop"
        return Piece(shown.text, (token_id,), reason, shown.matched, shown.reasoning, shown.tool_calls)

    def _end(self, text: str, ids: tuple[int, ...], reason: FinishReason, matched: int | None) -> Piece:
        """Give out what was held back; a stop string may turn up in it."""
        text += self._decoder.flush()
        if self._channels is None:
            return Piece(text, ids, reason, matched)
        self.reasoning_tokens += self._channels.is_thinking
        shown = self._channels.flush(text)
        if shown.matched is not None:
            return Piece(shown.text, ids, "stop", shown.matched, shown.reasoning, shown.tool_calls)
        if reason == "stop" and matched is None and self._channels.has_calls:
            reason = "tool_calls"
        return Piece(shown.text, ids, reason, matched, shown.reasoning, shown.tool_calls)


@attrs.define(eq=False)
class Timeline:
    """When one sequence queued, started and said its first token, in monotonic seconds."""

    queued_at: float
    started_at: float
    first_token_at: float | None = None

    def end(self, piece: Piece, answer: Answer, prompt_tokens: int, cached_tokens: int, now: float) -> SequenceEnd:
        """The account of an answer that `piece`, which has a reason, ended."""
        assert piece.reason is not None
        first = now if self.first_token_at is None else self.first_token_at
        return SequenceEnd(
            reason=piece.reason,
            prompt_tokens=prompt_tokens,
            completion_tokens=answer.tokens,
            cached_tokens=cached_tokens,
            matched=piece.matched,
            reasoning_tokens=answer.reasoning_tokens,
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


def output_of(
    sequence_id: int, piece: Piece, logprobs: tuple[TokenLogprob, ...] = (), end: SequenceEnd | None = None
) -> SequenceOutput:
    """What a piece says to admission."""
    return SequenceOutput(
        sequence_id, piece.text, piece.token_ids, logprobs, end, None, piece.reasoning, piece.tool_calls
    )
