"""The engine that runs models on MLX: its own continuous batching over mlx-lm's models and prompt caches.

A step does, in this order: let rows go that ended, were cancelled or paused; set one chunk of prefill
going; let rows join that are prefilled; set one decode step of the whole batch going; read the tokens of
the decode step before it. Everything is asynchronous but the reading, so the device always has the next
step in its queue. A row that turns out to have ended has then one token too many on its way, which is
dropped.

When a batch fails, its rows are computed again from their tokens, and each has to decode one token alone
before it may join the others: the row at fault fails there by itself.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import mlx.core as mx

from mlx_serving.actors.clock import Clock, monotonic
from mlx_serving.actors.errors import GenerationFailed, ServingError, describe
from mlx_serving.actors.generation.answer import Answer, Timeline
from mlx_serving.actors.generation.capacity import kv_budget
from mlx_serving.actors.generation.engine import EngineLimits, StepReport
from mlx_serving.actors.generation.mlx_engine import caches as prompt_caches
from mlx_serving.actors.generation.mlx_engine import loading, prefill
from mlx_serving.actors.generation.mlx_engine.batch import Batch, Step
from mlx_serving.actors.generation.mlx_engine.logprobs import RawLogprob
from mlx_serving.actors.generation.mlx_engine.row import Reading, Row
from mlx_serving.actors.generation.mlx_engine.sampling import RowSampling
from mlx_serving.actors.generation.request import answer_limit, info_of, prompt_of
from mlx_serving.actors.generation.text import IncrementalDecoder
from mlx_serving.actors.messages.admission import SequenceOutput
from mlx_serving.actors.messages.batching import SequenceQueued
from mlx_serving.actors.messages.values import ModelInfo, TokenLogprob
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.actors.models.tokenizer import TextTokenizer
from mlx_serving.config.schema import Generation

_IDLE_PREFILL_TOKENS = 2048
"""The prefill budget while nothing decodes."""
_STEPS_BETWEEN_CLEARINGS = 256
_IDLE_CACHE_BYTES = 32 << 20
_NOT_FINITE = "the model's output for this sequence was not finite"


class MlxEngine:
    """All methods must be called on one thread, `load` first."""

    def __init__(
        self,
        record: ModelRecord,
        settings: Generation,
        tokenizer: TextTokenizer,
        clock: Clock = monotonic,
    ) -> None:
        self._record = record
        self._settings = settings
        self._tokenizer = tokenizer
        self._clock = clock
        self._eos_ids = frozenset(record.eos_token_ids) | tokenizer.eos_token_ids
        self._slots = settings.max_rows
        self._steps = 0
        self._rows: dict[int, Row] = {}
        self._waiting: deque[Row] = deque()
        self._filling: list[Row] = []
        self._ready: list[Row] = []
        self._returning: list[Row] = []
        self._outputs: list[SequenceOutput] = []
        self._joining: list[Row] = []
        self._in_flight: Step | None = None

    def load(self) -> tuple[ModelInfo, EngineLimits]:
        loading.prepare_device(self._settings)
        self._model: Any = loading.load_weights(self._record)
        self._record = loading.widen(self._model, self._record)
        loading.speed_up(self._model, self._settings)
        self._batch = Batch(self._model)
        if not prompt_caches.are_mergeable(prompt_caches.new_caches(self._model)):
            self._slots = 1
        self._warm_up()
        kv_bytes = kv_budget(self._settings, loading.weight_bytes(self._model), loading.memory_bytes())
        return info_of(self._record), EngineLimits(self._slots, kv_bytes)

    def submit(self, sequence: SequenceQueued, started_at: float) -> None:
        prompt = prompt_of(sequence, self._record)
        decoder = IncrementalDecoder(self._tokenizer.backend, self._tokenizer.special_ids)
        limit = answer_limit(sequence, len(prompt), self._record)
        row = Row(
            sequence,
            prompt,
            len(prompt),
            Answer(sequence.stopping, limit, self._eos_ids, decoder),
            RowSampling.begin(sequence.sampling, sequence.index, prompt),
            Timeline(sequence.queued_at, started_at),
        )
        self._rows[sequence.sequence_id] = row
        self._waiting.append(row)

    def step(self) -> StepReport:
        self._outputs = []
        self._take_back()
        self._let_go()
        prefilled = self._prefill()
        previous, self._in_flight = self._in_flight, None
        tokens = self._decode(previous)
        self._steps += 1
        if self._steps % _STEPS_BETWEEN_CLEARINGS == 0:
            mx.clear_cache()
        self._rest()
        return StepReport(
            tuple(self._outputs),
            rows=len(previous.rows) if previous is not None else 0,
            tokens=tokens,
            prefill_tokens=prefilled,
            active_bytes=mx.get_active_memory(),
            cache_bytes=mx.get_cache_memory(),
        )

    def cancel(self, sequence_id: int) -> None:
        row = self._rows.get(sequence_id)
        if row is not None:
            self._forget(row)
            self._rest()

    def pause(self, sequence_id: int) -> None:
        row = self._rows.get(sequence_id)
        if row is not None:
            row.is_paused = True

    def resume(self, sequence_id: int) -> None:
        row = self._rows.get(sequence_id)
        if row is None:
            return
        row.is_paused = False
        if row.is_parked:
            row.is_parked = False
            self._returning.append(row)

    @property
    def pending(self) -> int:
        return sum(not row.is_paused for row in self._rows.values())

    def close(self) -> None:
        self._rows.clear()
        self._drop_batch()
        for rows in (self._waiting, self._filling, self._ready, self._returning):
            rows.clear()
        self._model = None
        self._batch = Batch(lambda *_, **__: None)
        mx.clear_cache()

    # --- rows come and go -----------------------------------------------------------------------------------

    def _take_back(self) -> None:
        """Rows that were parked say the token they were stopped at, and are ready again."""
        returning, self._returning = self._returning, []
        for row in returning:
            held, row.held = row.held, None
            if row.is_gone:
                continue
            if held is not None:
                self._deliver(row, held)
            if not row.is_gone:
                self._ready.append(row)

    def _let_go(self) -> None:
        """Rows leave the batch that are gone or paused, or whose last token is already on its way."""
        for index, row in enumerate(self._batch.rows):
            if row.is_paused and not row.is_gone and not row.answer.is_last:
                row.caches = self._batch.take(index)
                prompt_caches.start(prompt_caches.states(row.caches))
            row.is_parked = row.is_paused
        staying = [
            index
            for index, row in enumerate(self._batch.rows)
            if not (row.is_gone or row.is_paused or row.answer.is_last)
        ]
        if len(staying) < len(self._batch.rows):
            self._batch.keep(staying)

    def _forget(self, row: Row) -> None:
        row.is_gone = True
        row.caches = row.held = None
        self._rows.pop(row.sequence.sequence_id, None)

    # --- prefill --------------------------------------------------------------------------------------------

    def _prefill(self) -> int:
        if not (self._waiting or self._filling or self._ready):
            return 0
        self._waiting = deque(row for row in self._waiting if not row.is_gone)
        self._filling = [row for row in self._filling if not row.is_gone]
        self._ready = [row for row in self._ready if not row.is_gone]
        self._admit()
        active = [row for row in self._filling if not row.is_paused]
        budget = self._settings.prefill_tokens if self._batch.rows else _IDLE_PREFILL_TOKENS
        counts = prefill.shares([row.unfilled for row in active], budget)
        for row, count in zip(active, counts, strict=True):
            self._fill(row, count)
        return sum(counts)

    def _admit(self) -> None:
        """Begin as many prompts as may be prefilled side by side, in order."""
        active = sum(not row.is_paused for row in self._filling)
        room = self._slots - len(self._batch.rows) - len(self._ready) - active
        for row in list(self._waiting):
            if active >= self._settings.max_prefills or room <= 0:
                return
            if not row.is_paused:
                self._waiting.remove(row)
                self._filling.append(row)
                active, room = active + 1, room - 1

    def _fill(self, row: Row, count: int) -> None:
        try:
            if not self._batch.rows and row.caches is not None:
                # Nothing else bounds how far the host runs ahead.
                mx.eval(prompt_caches.states(row.caches))
            prefill.fill(self._model, row, count)
        except Exception as error:
            self._fail(row, error)
            return
        if not row.unfilled:
            self._filling.remove(row)
            if not row.is_suspect or self._is_cleared(row):
                self._ready.append(row)

    # --- decode ---------------------------------------------------------------------------------------------

    def _decode(self, previous: Step | None) -> int:
        """Set the next step going, then read the one before it. Returns the number of tokens read."""
        try:
            self._join()
            if self._batch.rows:
                self._in_flight = self._batch.launch()
            readings = previous.read() if previous is not None else []
        except Exception as error:
            self._recover(previous, error)
            return 0
        for row, reading in readings:
            self._take(row, reading)
        return len(readings)

    def _join(self) -> None:
        room = self._slots - len(self._batch.rows)
        joining = [row for row in self._ready if not row.is_paused][: max(0, room)]
        if joining:
            self._ready = [row for row in self._ready if row not in joining]
            self._joining = joining
            self._batch.join(joining)
            self._joining = []

    def _take(self, row: Row, reading: Reading) -> None:
        if row.is_gone:
            return
        if row.is_parked:
            row.held = reading
        else:
            self._deliver(row, reading)

    def _deliver(self, row: Row, reading: Reading) -> None:
        """Turn a token into an output, and end the row if it was the last."""
        if reading.token_id < 0:
            self._fail(row, GenerationFailed(_NOT_FINITE))
            return
        now = self._clock()
        if row.timeline.first_token_at is None:
            row.timeline.first_token_at = now
        row.ids.append(reading.token_id)
        piece = row.answer.add(reading.token_id)
        logprobs = (self._logprob(reading.token_id, reading.logprob),) if reading.logprob is not None else ()
        end = None
        if piece.reason is not None:
            end = row.timeline.end(piece, row.answer, row.prompt_tokens, now)
            self._forget(row)
        sequence_id = row.sequence.sequence_id
        shown = logprobs if piece.token_ids else ()
        self._outputs.append(SequenceOutput(sequence_id, piece.text, piece.token_ids, shown, end=end))

    def _logprob(self, token_id: int, raw: RawLogprob) -> TokenLogprob:
        top = tuple((each, self._word(each), logprob) for each, logprob in raw.top)
        return TokenLogprob(token_id, self._word(token_id), raw.logprob, top)

    def _word(self, token_id: int) -> str:
        return self._tokenizer.decode([token_id], skip_special_tokens=False)

    # --- failures -------------------------------------------------------------------------------------------

    def _fail(self, row: Row, error: Exception) -> None:
        if not isinstance(error, ServingError):
            error = GenerationFailed(f"{type(error).__name__}: {error}")
        self._forget(row)
        if row in self._filling:
            self._filling.remove(row)
        self._outputs.append(SequenceOutput(row.sequence.sequence_id, "", (), error=describe(error)))

    def _recover(self, previous: Step | None, error: Exception) -> None:
        """A step of the batch failed: a lone row is at fault, of several each is put to the test."""
        stepped = previous.rows if previous is not None else ()
        rows = list(dict.fromkeys([*self._batch.rows, *self._joining, *stepped]))
        self._joining = []
        rows = [row for row in rows if not row.is_gone]
        self._drop_batch()
        if len(rows) == 1:
            self._fail(rows[0], error)
            return
        for row in rows:
            row.restart()
            row.is_parked = False
        self._waiting.extendleft(reversed(rows))

    def _rest(self) -> None:
        """With no row left, nothing of the last ones stays in memory."""
        if not self._rows:
            self._drop_batch()
            if mx.get_cache_memory() > _IDLE_CACHE_BYTES:
                mx.clear_cache()

    def _drop_batch(self) -> None:
        self._in_flight = None
        self._batch.clear()

    def _is_cleared(self, row: Row) -> bool:
        """Decode one token of a suspect alone; it fails here, or may join the others."""
        alone = Batch(self._model)
        try:
            alone.join([row])
            ((_, reading),) = alone.launch().read()
        except Exception as error:
            self._fail(row, error)
            return False
        row.caches = alone.take(0)
        alone.keep([])
        row.filled = len(row.ids)
        row.is_suspect = False
        self._deliver(row, reading)
        return not row.is_gone

    def _warm_up(self) -> None:
        """Compile what the first request would wait for: one chunk of prefill and two decode steps."""
        row_caches = prompt_caches.new_caches(self._model)
        token = mx.zeros((1, 1), dtype=mx.uint32)
        try:
            self._model(mx.zeros((1, 8), dtype=mx.uint32), cache=row_caches)
            for _ in range(2):
                token = mx.argmax(self._model(token, cache=row_caches)[:, -1, :], axis=-1)[:, None]
            mx.eval(token)
        except Exception as error:
            raise loading.failed(self._record, error) from error
        mx.clear_cache()
