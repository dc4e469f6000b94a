"""What the caches of a batch's rows can do, whatever they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import mlx.core as mx

from mlx_serving.actors.generation.mlx_engine import caches as prompt_caches
from mlx_serving.actors.generation.mlx_engine.caches import Caches
from mlx_serving.native.kernels.stacks import DecoderStack

Order = list[int]
"""Where each row was before: row i of now was row `order[i]`; rows that were added count on from the old ones."""


class RowsCache(Protocol):
    """The caches of rows that decode together. Every change may reorder the rows, and says how."""

    can_roll_back: bool
    """Whether a pass may take several tokens a row and some of them be dropped again."""

    @property
    def is_compiled(self) -> bool:
        """Whether passes are, each for slabs of one size."""
        ...

    @property
    def writes_in_place(self) -> bool:
        """Whether a step may be set going while another is in flight without any copy."""
        ...

    @property
    def stack(self) -> DecoderStack | None:
        """What takes the model's layers in one operation; None where there is no such."""
        ...

    @property
    def widest(self) -> int:
        """Tokens a row that a pass may have before it costs far more than a little wider one should."""
        ...

    @property
    def nbytes(self) -> int:
        """Memory of the caches of all rows."""
        ...

    def capacities(self, longest: int) -> tuple[int, ...]:
        """What rows of up to so many tokens are given room for, in tokens, ascending; empty: for what they have."""
        ...

    def fresh(self) -> RowsCache:
        """Another one, without rows."""
        ...

    def emptied(self, most_bytes: int) -> RowsCache:
        """One without rows that has at most so many bytes of this one's memory; this one is used no more."""
        ...

    def presize(self, most_bytes: int, rows: int) -> None:
        """Allocate memory for `rows` short rows ahead, at most so many bytes of it."""
        ...

    def rehearse(self, rows: int, longest: int) -> None:
        """Have passes compiled, if they are, that up to so many rows need, alone and beside one of up to `longest`
        tokens; there are no rows."""
        ...

    def join(self, added: Sequence[Caches]) -> Order:
        """Take rows in, each with the plain caches of its own, which it must not use any more."""
        ...

    def keep(self, indices: Sequence[int]) -> Order:
        """Let all other rows go."""
        ...

    def take(self, index: int) -> Caches:
        """Plain caches with a copy of one row."""
        ...

    def view(self, index: int) -> Caches:
        """Plain caches that show one row until the next pass; what is to stay has to be copied from them."""
        ...

    def reserve(self, tokens: int) -> Order | None:
        """Make room for so many more tokens in every row. None: the order is as before."""
        ...

    def forward(self, tokens: mx.array, is_plain: bool = True) -> mx.array:
        """Logits [rows, tokens, vocabulary] of tokens [rows, tokens], which all rows keep. `reserve` goes before.

        `is_plain`: the model is nothing but itself in this pass; a compiled one may stand in for it.
        """
        ...

    def padded(self, tokens: int) -> int:
        """As many tokens a row or some more, which a pass takes in less time."""
        ...

    def drop(self, counts: Sequence[int]) -> None:
        """Roll each row back by so many tokens."""
        ...


class MergedRows:
    """mlx-lm's batched caches, for models of which some layer keeps more or less than all keys and values."""

    can_roll_back = False
    is_compiled = False
    writes_in_place = False
    stack = None
    widest = 1

    def __init__(self, model: Any) -> None:
        self._model = model
        self._caches: Caches = []
        self._count = 0

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in self._caches)

    def capacities(self, longest: int) -> tuple[int, ...]:
        return ()

    def fresh(self) -> MergedRows:
        return MergedRows(self._model)

    def emptied(self, most_bytes: int) -> MergedRows:
        return self.fresh()

    def presize(self, most_bytes: int, rows: int) -> None:
        """Nothing: these caches are as long as their rows."""

    def rehearse(self, rows: int, longest: int) -> None:
        """Nothing: no pass is compiled."""

    def join(self, added: Sequence[Caches]) -> Order:
        if not self._count and len(added) == 1:
            self._caches = added[0]
        elif self._count > 1:
            prompt_caches.extend(self._caches, prompt_caches.merge(added))
        else:
            self._caches = prompt_caches.merge([self._caches, *added] if self._count else added)
        self._count += len(added)
        return list(range(self._count))

    def keep(self, indices: Sequence[int]) -> Order:
        if not indices:
            self._caches = []
        elif self._count > 1:
            if len(indices) == 1:
                self._caches = prompt_caches.take(self._caches, indices[0])
            else:
                prompt_caches.keep(self._caches, list(indices))
        self._count = len(indices)
        return list(indices)

    def take(self, index: int) -> Caches:
        return self._caches if self._count == 1 else prompt_caches.take(self._caches, index)

    def view(self, index: int) -> Caches:
        return self.take(index)

    def reserve(self, tokens: int) -> Order | None:
        return None

    def forward(self, tokens: mx.array, is_plain: bool = True) -> mx.array:
        logits: mx.array = self._model(tokens, cache=self._caches)
        return logits

    def padded(self, tokens: int) -> int:
        return tokens

    def drop(self, counts: Sequence[int]) -> None:
        raise NotImplementedError("these caches cannot be rolled back")
