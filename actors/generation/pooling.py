"""Outputs that are filled anew at each step in place of new ones (`generation.object_pooling`)."""

from __future__ import annotations

from mlx_serving.actors.generation.answer import Piece, output_of
from mlx_serving.actors.messages.admission import SequenceOutput
from mlx_serving.actors.messages.values import SequenceEnd, TokenLogprob


class OutputPool:
    """The outputs of one step after the other. Whoever keeps one beyond the next step copies it."""

    def __init__(self, is_on: bool) -> None:
        """Off: every output is a new one."""
        self._is_on = is_on
        self._outputs: list[SequenceOutput] = []
        self._used = 0

    def begin(self) -> None:
        """A new step: the outputs of the last one may be filled anew."""
        self._used = 0

    def output(
        self, sequence_id: int, piece: Piece, logprobs: tuple[TokenLogprob, ...] = (), end: SequenceEnd | None = None
    ) -> SequenceOutput:
        """What `output_of` says."""
        if not self._is_on:
            return output_of(sequence_id, piece, logprobs, end)
        if self._used == len(self._outputs):
            self._outputs.append(output_of(sequence_id, piece, logprobs, end))
        output = self._outputs[self._used]
        self._used += 1
        SequenceOutput.__init__(
            output, sequence_id, piece.text, piece.token_ids, logprobs, end, None, piece.reasoning, piece.tool_calls
        )
        return output
