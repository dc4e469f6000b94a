"""Decode steps of the whole batch: which kind comes next, when it is set going, and when its tokens are read.

Everything is asynchronous but the reading, so the device always has the next step in its queue. A row that turns
out to have ended has then a token too many on its way, which is dropped.

MLX copies a cache that is written while a step in flight still reads it. Where that would cost more than it
gains, the next step is built but only set going once the last one is read.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Sequence

import attrs

from mlx_serving.actors.clock import Clock
from mlx_serving.actors.generation.mlx_engine import caches as prompt_caches
from mlx_serving.actors.generation.mlx_engine import guiding
from mlx_serving.actors.generation.mlx_engine.batch import Batch, Step
from mlx_serving.actors.generation.mlx_engine.device import back_end
from mlx_serving.actors.generation.mlx_engine.guiding import Guiding
from mlx_serving.actors.generation.mlx_engine.row import Reading, Row
from mlx_serving.actors.generation.mlx_engine.speculation import Checked, Speculator
from mlx_serving.actors.generation.pacing import PrefillPace
from mlx_serving.config.schema import Generation

_LEAST_WHOLE, _LEAST_LAYERED = 8, 4
"""Prompt tokens beside a step: of a chunk that goes through the model at once, of one that goes on by some layers."""
_OVERLAP_BYTES = {"cpu": 4 << 20, "metal": 16 << 20, "cuda": 256 << 20}
"""What is copied sooner than the device would stand idle between steps."""


@attrs.frozen(eq=False)
class _InFlight:
    """A step that was set going behind `prefilled` tokens of prompts, which had `before` others before them."""

    step: Step
    prefilled: int
    before: int


class Decoding:
    """The batch and its steps in flight."""

    def __init__(
        self,
        batch: Batch,
        guiding: Guiding,
        settings: Generation,
        clock: Clock,
        take: Callable[[Row, Reading], None],
        let_go: Callable[[], None],
        fail: Callable[[Row, Exception], None],
    ) -> None:
        """`take` is given every token that was read; `let_go` lets rows leave the batch that need no further step."""
        self.batch = batch
        self.speculator: Speculator | None = None
        self.checked = Checked()
        is_layered = batch.cache.stack is not None
        self.pace = PrefillPace(
            settings.prefill_slowdown,
            _LEAST_LAYERED if is_layered else _LEAST_WHOLE,
            settings.prefill_tokens,
            settings.inter_token_seconds,
            begins=not is_layered,
        )
        self._guiding = guiding
        self._optimizations = settings.metal_optimizations
        self._clock = clock
        self._take = take
        self._let_go = let_go
        self._fail = fail
        self._in_flight: deque[_InFlight] = deque()
        self._joining: Sequence[Row] = ()
        self._read_at: float | None = None
        self._is_steady = False
        """The read before was of a plain step, in the order in which plain steps are set going and read."""
        self._prefilled = self._before = 0

    @property
    def is_idle(self) -> bool:
        """No step is on its way."""
        return not self._in_flight

    @property
    def rows_in_flight(self) -> int:
        """Of the step that will be read next."""
        return len(self._in_flight[0].step.rows) if self._in_flight else 0

    @property
    def rows_at_stake(self) -> list[Row]:
        """Those that a failure of the batch concerns."""
        stepped = [row for each in self._in_flight for row in each.step.rows]
        return [row for row in dict.fromkeys([*self.batch.rows, *self._joining, *stepped]) if not row.is_gone]

    def drop(self, held_bytes: int = 0) -> None:
        """Forget all rows, but not all their memory if some may be held for others."""
        self._in_flight.clear()
        self._joining = ()
        if self.speculator is not None:
            self.speculator.clear()
        self._read_at = None
        self.batch = self.batch.emptied(held_bytes) if held_bytes else self.batch.anew()

    def step(self, joining: Sequence[Row], prefilled: int, before: int = 0) -> int:
        """Let rows join, set the next step going and read an earlier one. Returns the number of tokens read.

        `prefilled` tokens of prompts were set going beside it, behind `before` others.
        """
        self.checked = Checked()
        self._prefilled, self._before = prefilled, before
        self._joining = joining
        if joining:
            self.batch.join(joining)
            self._joining = ()
        if not self.batch.rows:
            return self._read(len(self._in_flight))
        tokens = self._speculate()
        if tokens is not None:
            return tokens
        if any(row.guide is not None for row in self.batch.rows):
            return self._step_guided()
        if not self._optimizations.blit_queue:
            return self._step_serially()
        step = self.batch.sample(self.batch.forward())
        if not self._overlaps():
            return self._read(len(self._in_flight), before=functools.partial(self._go, step))
        self._go(step)
        return self._read(len(self._in_flight) + 1 - self._optimizations.command_buffer_ring)

    def _step_serially(self) -> int:
        """Begin with the next step once the tokens of the last one are handled."""
        tokens = self._read(len(self._in_flight))
        self._let_go()
        if self.batch.rows:
            self._go(self.batch.sample(self.batch.forward()))
        return tokens

    def _step_guided(self) -> int:
        """Make the masks of the next step while its forward pass runs, once the tokens before it are read, and before
        these are handled."""
        logits = self.batch.forward()
        start = functools.partial(prompt_caches.start, [logits])
        overlaps = self._overlaps()
        if overlaps:
            start()
        readings = self._await(len(self._in_flight))
        if not overlaps:
            start()
        readings = [(row, guiding.followed(row, reading)) for row, reading in readings]
        rows = self.batch.rows
        try:
            self._go(self.batch.sample(logits, self._guiding.masks(rows)))
        finally:
            self._take_all(readings)  # whose guides have them already
        for row in rows:
            if not row.is_gone and row.guide is not None and row.guide.failure is not None:
                self._fail(row, row.guide.failure)
        return len(readings)

    def _go(self, step: Step) -> None:
        step.start()
        self._in_flight.append(_InFlight(step, self._prefilled, self._before))

    def _speculate(self) -> int | None:
        """Check proposals, if that is worth while; the number of tokens read, None if it is not.

        What to propose depends on every token before: the steps in flight are read first.
        """
        speculator = self.speculator
        plan = speculator.plan(self.batch.rows, self.pace.budget) if speculator is not None else None
        if speculator is None or plan is None:
            return None
        tokens = self._drain()
        self._let_go()
        checked = speculator.check(self.batch, plan, self._guiding.draft_masks) if self.batch.rows else None
        if checked is None:
            return tokens
        self.checked = checked
        self._keep_pace(self._prefilled, self._before, len(checked.said), checked.width)
        for row, said in self.checked.said:
            for reading in said:
                self._take(row, reading)
            tokens += len(said)
        return tokens

    def _read(self, steps: int, before: Callable[[], None] | None = None) -> int:
        """Wait for the oldest steps, call `before`, and only then take the tokens in. Returns their number."""
        readings = self._await(steps)
        if before is not None:
            before()
        self._take_all(readings)
        return len(readings)

    def _drain(self) -> int:
        """Read all steps before another is set going: how long that takes says little about a step."""
        readings = []
        while self._in_flight:
            readings += self._in_flight[0].step.read()
            self._in_flight.popleft()
            self._read_at, self._is_steady = self._clock(), False
        if self._read_at is None:
            self._read_at = self._clock()
        self._take_all(readings)
        return len(readings)

    def _await(self, steps: int) -> list[tuple[Row, Reading]]:
        """Wait for the oldest steps."""
        readings = []
        for _ in range(steps):
            oldest = self._in_flight[0]
            readings += oldest.step.read()
            self._in_flight.popleft()
            self._keep_pace(oldest.prefilled, oldest.before, len(oldest.step.rows))
        return readings

    def _take_all(self, readings: Sequence[tuple[Row, Reading]]) -> None:
        for row, reading in readings:
            self._take(row, reading)

    def _keep_pace(self, prefilled: int, before: int, rows: int, width: int = 1) -> None:
        """A step was read that took `width` tokens in from each of so many rows, behind so many prompt tokens, which
        had `before` others before them.

        Since the one before it, the device has computed these and the host has set going what is beside the next step:
        the time says something where that is as much. After a check the host has two steps to set going before it reads
        a plain one. Once rows have left it sets less going, so that steps of so many rows look cheaper than they are.
        """
        now = self._clock()
        counts = prefilled == self._prefilled and (width > 1 or self._is_steady)
        if self._read_at is not None and counts:
            self.pace.observe(now - self._read_at, prefilled, rows, before)
            if self.speculator is not None and not prefilled and rows == len(self.batch.rows):
                self.speculator.saw_step(rows, width, now - self._read_at)
        self._read_at, self._is_steady = (now if self.batch.rows else None), width == 1

    def _overlaps(self) -> bool:
        """Whether a step may be set going while another is in flight."""
        chosen = self._optimizations
        if chosen.command_buffer_ring == 1 or self.batch.cache.writes_in_place:
            return chosen.command_buffer_ring > 1
        most = chosen.ring_kv_bytes or _OVERLAP_BYTES[back_end()]
        return self.batch.cache.nbytes <= most
