"""What one step gives to each sequence, as it is put together."""

from __future__ import annotations

from mlx_serving.actors.generation.answer import Piece
from mlx_serving.actors.generation.mlx_engine.logprobs import RawLogprob
from mlx_serving.actors.generation.pooling import OutputPool
from mlx_serving.actors.messages.admission import SequenceOutput
from mlx_serving.actors.messages.values import SequenceEnd, TokenLogprob
from mlx_serving.actors.models.tokenizer import TextTokenizer


class Outputs:
    """Of one step after the other: at most one output a sequence each, of however many tokens."""

    def __init__(self, tokenizer: TextTokenizer, object_pooling: bool = False) -> None:
        self._tokenizer = tokenizer
        self._pool = OutputPool(object_pooling)
        self._by_sequence: dict[int, SequenceOutput] = {}

    def begin(self) -> None:
        """A new step."""
        self._pool.begin()
        self._by_sequence.clear()

    def say(
        self, sequence_id: int, piece: Piece, logprobs: tuple[TokenLogprob, ...] = (), end: SequenceEnd | None = None
    ) -> None:
        """Add what a token adds to the sequence's answer."""
        self.put(self._pool.output(sequence_id, piece, logprobs, end))

    def put(self, output: SequenceOutput) -> None:
        """Add it to what the sequence has in this step."""
        before = self._by_sequence.get(output.sequence_id)
        if before is not None:
            output = SequenceOutput(
                output.sequence_id,
                before.text + output.text,
                before.token_ids + output.token_ids,
                before.logprobs + output.logprobs,
                output.end,
                output.error,
                before.reasoning + output.reasoning,
                before.tool_calls + output.tool_calls,
            )
        self._by_sequence[output.sequence_id] = output

    def all(self) -> tuple[SequenceOutput, ...]:
        return tuple(self._by_sequence.values())

    def logprob(self, token_id: int, raw: RawLogprob) -> TokenLogprob:
        """With the words of the tokens."""
        text_of = self._tokenizer.text_of
        top = tuple((each, text_of(each), logprob) for each, logprob in raw.top)
        return TokenLogprob(token_id, text_of(token_id), raw.logprob, top)
