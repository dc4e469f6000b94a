"""Rows on their way into the batch: waiting, being prefilled, ready to join."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import mlx.core as mx

from mlx_serving.actors.clock import Clock
from mlx_serving.actors.generation.mlx_engine import caches as prompt_caches
from mlx_serving.actors.generation.mlx_engine import chunk_program, composed_attention, prefill
from mlx_serving.actors.generation.mlx_engine.adapters import Adapters
from mlx_serving.actors.generation.mlx_engine.caches import Caches
from mlx_serving.actors.generation.mlx_engine.chunk_program import ChunkProgram
from mlx_serving.actors.generation.mlx_engine.device import back_end
from mlx_serving.actors.generation.mlx_engine.layered_prefill import LayeredPrefill
from mlx_serving.actors.generation.mlx_engine.reuse import Reuse
from mlx_serving.actors.generation.mlx_engine.row import Row
from mlx_serving.actors.generation.pacing import IdlePace
from mlx_serving.actors.generation.request import is_prefill_only
from mlx_serving.native.kernels.stacks import DecoderStack

_LEAST_IDLE, _MOST_IDLE = {"cpu": 128, "metal": 512, "cuda": 512}, 2048
"""Tokens of a chunk while nothing decodes: from the least on a larger one takes hardly less time a token."""
_MOST_PADDED = 1.25
"""Places of a pass shared beside rows that decode, in units of the tokens in it."""
_LEAST_WHOLE = 8
"""Tokens of a chunk that goes through the model at once, where the budget is for some layers of one."""
_MOST_LONG = 4
"""Prompts that are filled side by side in caches as large as slabs."""
_FIRST_TOKENS = {"cpu": 16, "metal": 64, "cuda": 64}
"""Ids left of a prompt up to which logits after all of them take less than a pass of its own for the last one."""


@attrs.frozen(eq=False)
class _IdleChunk:
    """So many tokens, of `row` among others, that were set going at a time."""

    row: Row
    begun: float
    tokens: int


class Prompts:
    """`waiting` in order of arrival, `filling` in part, `ready` up to their last id."""

    def __init__(
        self,
        model: Any,
        adapters: Adapters,
        new_caches: Callable[[], Caches],
        reuse: Reuse,
        stack: DecoderStack | None,
        shares_passes: bool,
        fail: Callable[[Row, Exception], None],
        is_cleared: Callable[[Row], bool],
        say_first: Callable[[Row, mx.array], None],
        clock: Clock,
        chunks: ChunkProgram | None = None,
    ) -> None:
        """`stack` takes chunks through the model some layers at a time. `shares_passes`: several prompts may be padded
        into one pass, for all layers keep plain keys and values. `is_cleared` puts a suspect row to the test.
        `say_first` draws a row's first token from the logits after its prompt, and waits for it. `chunks`: the model
        compiled for one row without an adapter, if that is possible."""
        self._model = composed_attention.around(model) if shares_passes else model
        self._adapters = adapters
        self._new_caches = new_caches
        self._reuse = reuse
        self._layered = LayeredPrefill(stack, new_caches) if stack is not None else None
        self._shares_passes = shares_passes
        self._fail = fail
        self._is_cleared = is_cleared
        self._say_first = say_first
        self._clock = clock
        self._chunks = chunks
        self._idle_pace = IdlePace(_LEAST_IDLE[back_end()], _MOST_IDLE)
        self._idle_chunk: _IdleChunk | None = None
        """The one that was set going in the step before."""
        self.waiting: deque[Row] = deque()
        self.filling: list[Row] = []
        self.ready: list[Row] = []
        self._just_ready: list[Row] = []
        """Those whose last chunk was set going in this step."""
        self._unkept: Row | None = None
        """One that said its first token in the step before, and has not left to others what it has."""

    def __bool__(self) -> bool:
        return bool(self.waiting or self.filling or self.ready)

    def clear(self) -> None:
        self.waiting.clear()
        self.filling.clear()
        self.ready.clear()
        self._just_ready.clear()
        self._unkept = None

    def keep(self) -> None:
        """Leave to others what a row has whose first token is on its way by now."""
        row, self._unkept = self._unkept, None
        if row is not None:
            self._reuse.advance(row)

    def admit(self, most: int, room: int, is_busy: bool) -> None:
        """Begin as many prompts as may be prefilled side by side, in order, but for those that had better wait.

        `room`: places left in the batch. `is_busy`: some rows decode.
        """
        self._forget_gone()
        active = sum(not row.is_paused for row in self.filling)
        room -= len(self.ready) + active
        for row in list(self.waiting):
            if active >= most or room <= 0:
                return
            if (
                not row.is_paused
                and self._has_memory_for(row)
                and not self._reuse.must_wait(row, self.filling, is_busy)
            ):
                self.waiting.remove(row)
                self._begin(row)
                active, room = active + 1, room - 1

    def advance(self, budget: int) -> int:
        """Set prefill of so many tokens going beside rows that decode. Returns its tokens."""
        self._idle_chunk = None
        active = self._active
        together = self._sharing(active, budget, is_alone=False)
        if len(together) > 1:
            return self._fill_together(together, budget)
        counts = prefill.shares([row.unpaid for row in active], budget)
        counts = [self._in_one_pass(row, count) for row, count in zip(active, counts, strict=True)]
        return sum(self._fill(row, count, is_alone=False) for row, count in zip(active, counts, strict=True))

    def advance_alone(self, is_idle: bool) -> int:
        """Set a chunk of prefill going while nothing decodes; `is_idle`: nor is anything still to be read. Returns its
        tokens."""
        last, self._idle_chunk = self._idle_chunk, None
        active = self._active
        if is_idle and len(active) == 1 and self._may_say_first(active[0]):
            return self._fill_all(active[0])
        if not self._is_settled(active):
            return 0
        now = self._clock()
        if last is not None and last.row in active:
            self._idle_pace.observe(now - last.begun, last.tokens)
            self._reuse.computed(last.tokens, now - last.begun)
        budget = self._idle_pace.budget
        together = self._sharing(active, budget, is_alone=True)
        if len(together) > 1:
            return self._fill_together(together, budget)
        counts = prefill.shares([row.unpaid for row in active], budget)
        tokens = sum(self._fill(row, count, is_alone=True) for row, count in zip(active, counts, strict=True))
        if active:
            self._idle_chunk = _IdleChunk(max(active, key=lambda row: row.unfilled), now, tokens)
        return tokens

    def _has_memory_for(self, row: Row) -> bool:
        """Whether it may begin beside those that have begun, as caches for compiled chunks are as large as slabs."""
        if self._chunks is None or prefill.can_share(row):
            return True
        return sum(not prefill.can_share(each) for each in self._active) < _MOST_LONG

    @property
    def deepest(self) -> int:
        """Tokens before the next chunk, of that prompt of which most have gone through."""
        return max((row.filled for row in self._active), default=0)

    @property
    def _active(self) -> list[Row]:
        return [row for row in self.filling if not row.is_paused]

    def _is_settled(self, rows: Sequence[Row]) -> bool:
        """Wait for what is in flight: nothing else bounds how far the host runs ahead. A failure is that of all."""
        try:
            self.settle(rows)
        except Exception as error:
            for row in rows:
                self._fail(row, error)
            return False
        return True

    def settle(self, rows: Sequence[Row]) -> None:
        """Wait until what was set going of these is computed."""
        if self._chunks is not None:
            self._chunks.wait()
        mx.eval([_under_way(row) for row in rows])

    @property
    def may_join(self) -> bool:
        """Whether some row could join the batch now."""
        return any(map(_may_join, self.ready))

    def take_ready(self, room: int, is_alone: bool) -> list[Row]:
        """Rows that join the batch now. While others decode (not `is_alone`), those whose last chunk was set going in
        this step join in the next one: a step is not to be held up by both."""
        just_ready, self._just_ready = self._just_ready, []
        rows = self.ready if is_alone else [row for row in self.ready if row not in just_ready]
        joining = list(filter(_may_join, rows))[: max(0, room)]
        if joining:
            self.ready = [row for row in self.ready if row not in joining]
        return joining

    def _begin(self, row: Row) -> None:
        self.filling.append(row)
        try:
            self._reuse.begin(row)
        except Exception as error:
            self._fail(row, error)

    def _fill(self, row: Row, count: int, is_alone: bool) -> int:
        """Set prefill of a row going that is worth so many tokens, or a little more or less; returns what it is."""
        try:
            layered = self._layered
            if layered is not None and (row.chunk is not None or not is_alone) and layered.takes(row):
                # Alone, what is left goes through at once, but for what the layers behind a chunk's wait for.
                if is_alone and row.chunk is not None:
                    count = min(count, row.chunk.tokens - row.chunk.paid)
                layered.fill(row, count)
            else:
                row.chunk = None
                if layered is not None:
                    count = max(count, min(_LEAST_WHOLE, row.until_stop))
                self._adapters.select([row.adapter])
                prefill.fill(self._model, row, count, self._new_caches, self._chunks_for(row))
            self._reuse.advance(row)
        except Exception as error:
            self._fail(row, error)
            return count
        if not row.unfilled:
            self._done(row)
        return count

    def _sharing(self, active: Sequence[Row], budget: int, is_alone: bool) -> list[Row]:
        """Those whose whole prompts go through in one pass. While others decode all or none, so that none waits for
        ever, and only if little of the pass is padding."""
        rows = [row for row in active if prefill.can_share(row)] if self._shares_passes else []
        if is_alone or not rows:
            return rows
        padded = len(rows) * max(row.unfilled for row in rows)
        is_dense = padded <= _MOST_PADDED * sum(row.unfilled for row in rows)
        return rows if len(rows) == len(active) and padded <= budget and is_dense else []

    def _may_say_first(self, row: Row) -> bool:
        """Whether its first token may come from the pass that ends its prompt: soonest, if nothing waits meanwhile."""
        is_plain = self._shares_passes and row.awaited_guide is None and row.chunk is None and not row.is_suspect
        return is_plain and not is_prefill_only(row.sequence) and row.unfilled < _FIRST_TOKENS[back_end()]

    def _fill_all(self, row: Row) -> int:
        count = row.unfilled + 1
        try:
            self._adapters.select([row.adapter])
            self._say_first(row, prefill.fill_all(self._model, row, self._new_caches, self._chunks_for(row)))
        except Exception as error:
            self._fail(row, error)
            return count
        if row in self.filling:
            self.filling.remove(row)
        if not row.is_gone:
            self.ready.append(row)
            self._unkept = row
        return count

    def _chunks_for(self, row: Row) -> ChunkProgram | None:
        return self._chunks if not row.adapter else None

    def _in_one_pass(self, row: Row, budget: int) -> int:
        """How many of a budget of tokens go beside rows that decode, which every pass holds up."""
        return chunk_program.within(budget, row.until_stop) if self._chunks_for(row) is not None else budget

    def _fill_together(self, rows: Sequence[Row], budget: int) -> int:
        width = max(row.unfilled for row in rows)
        rows = rows[: max(1, budget // width)]
        count = sum(row.unfilled for row in rows)
        try:
            self._adapters.select([row.adapter for row in rows])
            prefill.fill_together(self._model, rows, self._new_caches)
        except Exception:
            # Alone, the row at fault fails by itself.
            for row in rows:
                row.caches, row.filled = None, 0
                self._fill(row, row.unfilled, is_alone=True)
            return count
        for row in rows:
            self._reuse.advance(row)
            self._done(row)
        return count

    def _done(self, row: Row) -> None:
        self.filling.remove(row)
        if not row.is_suspect or self._is_cleared(row):
            self.ready.append(row)
            self._just_ready.append(row)

    def _forget_gone(self) -> None:
        self.waiting = deque(row for row in self.waiting if not row.is_gone)
        self.filling = [row for row in self.filling if not row.is_gone]
        self.ready = [row for row in self.ready if not row.is_gone]


def _under_way(row: Row) -> Any:
    """The arrays that are computed last for a row so far."""
    if row.chunk is not None:
        return row.chunk.hidden
    return prompt_caches.states(row.caches) if row.caches is not None else []


def _may_join(row: Row) -> bool:
    return not row.is_paused and not row.is_gone and row.awaited_guide is None
