"""One sequence as the MLX engine holds it."""

from __future__ import annotations

from concurrent.futures import Future

import attrs
import mlx.core as mx

from mlx_serving.actors.errors import ServingError
from mlx_serving.actors.generation.answer import Answer, Timeline
from mlx_serving.actors.generation.guidance.guide import Guide
from mlx_serving.actors.generation.mlx_engine.caches import Caches
from mlx_serving.actors.generation.mlx_engine.logprobs import RawLogprob
from mlx_serving.actors.generation.mlx_engine.sampling import RowSampling
from mlx_serving.actors.generation.prefix.disk import Fetch
from mlx_serving.actors.generation.speculation.row import RowSpeculation
from mlx_serving.actors.messages.batching import SequenceQueued


@attrs.frozen
class Followed:
    """What became of a row's guide with a token. `error`: why it cannot take it."""

    is_complete: bool = False
    error: ServingError | None = None


@attrs.frozen
class Reading:
    """A drawn token as the host reads it. `token_id` -1: the row's logits were not finite."""

    token_id: int
    logprob: RawLogprob | None = None
    followed: Followed | None = None
    """None: the row's guide, if it has one, has not taken the token in yet."""


@attrs.define(eq=False)
class Chunk:
    """Tokens of a prompt on their way through the model, a few layers at a time."""

    tokens: int
    hidden: mx.array
    """What the next layer is given, [1, tokens, columns]."""
    layer: int = 0
    """The next one."""
    paid: int = 0
    """What the way so far is worth, in tokens."""


@attrs.define(eq=False)
class Row:
    """`ids` are prompt and answer so far; the caches hold the first `filled` of them.

    While a row decodes, its caches and next input belong to the batch, and `caches` is None.
    """

    sequence: SequenceQueued
    ids: list[int]
    prompt_tokens: int
    answer: Answer
    sampling: RowSampling
    timeline: Timeline
    adapter: int = 0
    """Its slot in `Adapters`."""
    caches: Caches | None = None
    filled: int = 0
    chunk: Chunk | None = None
    """Behind those filled, with its keys and values in the caches as far as it is."""
    is_paused: bool = False
    is_parked: bool = False
    """Paused, and out of the batch."""
    is_gone: bool = False
    """Ended, failed or cancelled: it gets no further output."""
    is_suspect: bool = False
    """It was in a batch that failed, and must decode one token alone before it may join another."""
    held: list[Reading] = attrs.field(factory=list)
    """Tokens that were being computed when the row was parked."""
    namespace: bytes = b""
    """Within which it shares prefixes with others."""
    cached_tokens: int = 0
    """Of the prompt, taken from the prefix cache."""
    kept: int = 0
    """Tokens of which the prefix cache was shown what the row has."""
    stops: list[int] = attrs.field(factory=list)
    """Lengths, ascending, at which prefill lets the prefix cache see what it has."""
    prefetch: Fetch | None = None
    is_failed: bool = False
    speculation: RowSpeculation | None = None
    """Made when a proposal to the row is first thought of."""
    guide: Guide | None = None
    """What holds its answer."""
    awaited_guide: Future[Guide] | None = None
    """While it is being made."""

    @property
    def unfilled(self) -> int:
        """Tokens to prefill; the last one is left to the decode step, which draws from its logits."""
        return len(self.ids) - 1 - self.filled

    @property
    def until_stop(self) -> int:
        """Tokens to prefill in one go at most."""
        return min(self.unfilled, self.stops[0] - self.filled) if self.stops else self.unfilled

    @property
    def unpaid(self) -> int:
        """What of them is left to do: a chunk on its way counts as far as it has not come."""
        return self.until_stop - (self.chunk.paid if self.chunk is not None else 0)

    @property
    def is_drawn_out(self) -> bool:
        """Its last token is drawn or being drawn: no step is needed after it."""
        return self.sampling.position >= self.answer.limit

    def restart(self) -> None:
        """Compute everything again from the ids: what the caches held is lost."""
        self.caches = self.chunk = None
        self.filled = self.kept = 0
        self.is_suspect = True
        self.sampling.rewind(self.ids[self.prompt_tokens :])
