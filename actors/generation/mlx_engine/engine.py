"""The engine that runs models on MLX: its own continuous batching over mlx-lm's models.

A step does, in this order: let rows go that ended, were cancelled or paused; set one chunk of prefill
going; let rows join that are prefilled; set one decode step of the whole batch going; read the tokens of
an earlier decode step. Where nothing decodes, a row's first token is drawn from the chunk that ends its prompt, and
that is all that the step does: even what the prefix cache gets of it waits for the next one.

When a batch fails, its rows are computed again from their tokens, and each has to decode one token alone
before it may join the others: the row at fault fails there by itself.

Over 400 lines, for every part of a step has to know how rows leave it; what the parts do stands in their own modules.
"""

from __future__ import annotations

import functools
import logging
import threading
from typing import Any

import attrs
import mlx.core as mx

from mlx_serving.actors.clock import Clock, monotonic
from mlx_serving.actors.errors import GenerationFailed, ServingError, describe
from mlx_serving.actors.generation.answer import Timeline
from mlx_serving.actors.generation.capacity import kv_budget
from mlx_serving.actors.generation.engine import EngineLimits, HeldPrefixes, StepReport
from mlx_serving.actors.generation.mlx_engine import caches as prompt_caches
from mlx_serving.actors.generation.mlx_engine import composed_attention, guiding, loading, prefill, rehearsal
from mlx_serving.actors.generation.mlx_engine.adapters import Adapters, FindAdapter, no_adapter
from mlx_serving.actors.generation.mlx_engine.batch import Batch, first_step
from mlx_serving.actors.generation.mlx_engine.caches import Caches
from mlx_serving.actors.generation.mlx_engine.chunk_program import chunk_program_for
from mlx_serving.actors.generation.mlx_engine.decoding import Decoding
from mlx_serving.actors.generation.mlx_engine.device import is_cpu
from mlx_serving.actors.generation.mlx_engine.draft_model import DraftModel, load_draft
from mlx_serving.actors.generation.mlx_engine.outputs import Outputs
from mlx_serving.actors.generation.mlx_engine.prompts import Prompts
from mlx_serving.actors.generation.mlx_engine.reuse import reuse_for
from mlx_serving.actors.generation.mlx_engine.row import Reading, Row
from mlx_serving.actors.generation.mlx_engine.rows_cache import RowsCache
from mlx_serving.actors.generation.mlx_engine.sampling import RowSampling
from mlx_serving.actors.generation.mlx_engine.slab_rows import capacity_for, rows_cache_for
from mlx_serving.actors.generation.mlx_engine.speculation import Checked, Speculator, speculator_for
from mlx_serving.actors.generation.request import answer_limit, answer_of, is_prefill_only, prompt_of
from mlx_serving.actors.messages.admission import SequenceOutput
from mlx_serving.actors.messages.batching import SequenceQueued
from mlx_serving.actors.messages.values import CacheStats, CacheTier, ModelInfo
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.actors.models.tokenizer import TextTokenizer
from mlx_serving.config.schema import Generation

_log = logging.getLogger(__name__)
_STEPS_BETWEEN_CLEARINGS = 256
_KEPT_AT_REST = 1 << 20
_COMPILED_POOL_SHARE = 8
"""What of the budget for keys and values the slabs of short rows may take where passes are compiled for their size."""
_NOT_FINITE = "the model's output for this sequence was not finite"


class MlxEngine:
    """All methods must be called on one thread, `load` first."""

    def __init__(
        self,
        record: ModelRecord,
        settings: Generation,
        tokenizer: TextTokenizer,
        clock: Clock = monotonic,
        find_adapter: FindAdapter = no_adapter,
        draft: ModelRecord | None = None,
    ) -> None:
        """`find_adapter` gives the record of what a sequence calls its adapter; `draft` is a draft model's."""
        self._record = record
        self._draft_record = draft
        self._find_adapter = find_adapter
        self._settings = settings
        self._tokenizer = tokenizer
        self._clock = clock
        self._eos_ids = frozenset(record.eos_token_ids) | tokenizer.eos_token_ids
        self._slots = settings.max_rows
        self._steps = 0
        self._rows: dict[int, Row] = {}
        self._returning: list[Row] = []
        self._said_first = False
        self._outputs = Outputs(tokenizer, settings.object_pooling)
        self._draft: DraftModel | None = None

    def load(self) -> tuple[ModelInfo, EngineLimits]:
        loading.prepare_device(self._settings)
        self._guiding = guiding.Guiding(
            self._tokenizer, self._eos_ids, self._record.vocab_size, self._settings.guidance
        )
        vocabulary = self._read_vocabulary()
        self._model: Any = loading.load_weights(self._record)
        self._model = loading.dequantise(self._model, self._settings)
        kernels = loading.speed_up(self._model, self._settings)
        self._record = loading.widen(self._model, self._record)
        self._load_draft()
        self._start_batching()
        loading.warm_up(self._record, self._model, self._new_caches(), self._decoding.batch.cache.fresh())
        self._rehearse()
        self._decoding.speculator = self._make_speculator()
        if vocabulary.is_alive():
            vocabulary.join()
        capacities = self._decoding.batch.cache.capacities(self._record.context_length)
        is_trimmable = not self._reuse.needs_segments
        info = attrs.evolve(self._record.info(), is_trimmable=is_trimmable, kernels=kernels, capacities=capacities)
        return info, self._limits

    def _read_vocabulary(self) -> threading.Thread:
        """Have it read for guides, beside the weights."""
        thread = threading.Thread(target=self._guiding.load, name="vocabulary", daemon=True)
        if self._settings.guidance.at_start:
            thread.start()
        return thread

    def submit(self, sequence: SequenceQueued, started_at: float) -> None:
        row = self._row(sequence, started_at)
        row.adapter = self._adapters.acquire(sequence.adapter)
        self._reuse.queue(row)
        self._guiding.begin(row)
        self._rows[sequence.sequence_id] = row
        self._prompts.waiting.append(row)

    def step(self) -> StepReport:
        self._outputs.begin()
        self._said_first = False
        self._prompts.keep()
        self._take_guides()
        self._take_back()
        self._let_go()
        prefilled, before = self._prefill()
        self._end_prefill_only()
        stepped = 1 if self._said_first else self._decoding.rows_in_flight
        tokens = 1 if self._said_first else self._decode(prefilled, before)
        self._steps += 1
        self._reuse.turn()
        if self._steps % _STEPS_BETWEEN_CLEARINGS == 0:
            loading.return_memory()
        self._rest()
        checked = Checked() if self._said_first else self._decoding.checked
        return StepReport(
            self._outputs.all(),
            rows=max(stepped, len(checked.said)),
            tokens=tokens,
            prefill_tokens=prefilled,
            active_bytes=mx.get_active_memory(),
            cache_bytes=mx.get_cache_memory(),
            prefixes=self._reuse.stats(),
            drafted=checked.proposed,
            accepted=checked.accepted,
        )

    def cancel(self, sequence_id: int) -> None:
        row = self._rows.get(sequence_id)
        if row is not None:
            self._prompts.keep()
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

    def grant(self, kv_bytes: int) -> None:
        self._reuse.resize(self._settings.prefix_cache.share_of(kv_bytes))

    def cache_stats(self) -> CacheStats:
        return self._reuse.stats()

    def clear_cache(self, tier: CacheTier) -> None:
        self._reuse.clear(tier)

    def held_prefixes(self) -> HeldPrefixes | None:
        return self._reuse.held()

    def rest(self) -> None:
        if not self._rows:
            loading.return_memory(_KEPT_AT_REST)

    def close(self) -> None:
        self._rows.clear()
        self._returning.clear()
        if hasattr(self, "_decoding"):
            self._prompts.clear()
            self._decoding.drop()
            self._reuse.close()
            self._guiding.close()
            del self._decoding, self._prompts, self._adapters, self._reuse, self._guiding, self._chunks
        self._draft = None
        self._model = None
        mx.clear_cache()

    def _row(self, sequence: SequenceQueued, started_at: float) -> Row:
        prompt = prompt_of(sequence, self._record)
        limit = answer_limit(sequence, len(prompt), self._record)
        return Row(
            sequence,
            prompt,
            len(prompt),
            answer_of(sequence, limit, self._eos_ids, self._tokenizer),
            RowSampling.begin(sequence.sampling, sequence.index, prompt),
            Timeline(sequence.queued_at, started_at),
        )

    def _load_draft(self) -> None:
        if self._draft_record is not None:
            self._draft = load_draft(self._draft_record, self._record, self._tokenizer, self._settings)
            kv_bytes = self._record.kv_bytes_per_token + self._draft_record.kv_bytes_per_token
            self._record = attrs.evolve(self._record, kv_bytes_per_token=kv_bytes)

    def _rehearse(self) -> None:
        """Have everything compiled that requests may need. What fails here would fail a request alone."""
        if is_cpu():
            return
        batch = self._decoding.batch.anew()
        model = composed_attention.around(self._model) if batch.cache.can_roll_back else self._model
        try:
            rows = [self._row(each, 0.0) for each in rehearsal.sequences(self._slots)]
            self._adapters.select([0] * len(rows))
            rehearsal.rehearse(
                batch,
                rows,
                lambda row: prefill.fill(model, row, row.unfilled, self._new_caches, self._chunks),
                self._record.vocab_size,
                self._draft is not None,
            )
            longest = self._record.context_length
            self._decoding.batch.cache.rehearse(self._slots, longest)
            if self._chunks is not None:
                self._decoding.pace.expect(self._chunks.rehearse(self._clock, longest))
        except Exception:
            _log.exception("the rehearsal failed: the first requests may have to wait for kernels")
        mx.clear_cache()

    def _make_speculator(self) -> Speculator | None:
        caches = self._new_caches()
        self._adapters.select([0])
        return speculator_for(self._settings, self._decoding.batch.cache, self._model, caches, self._draft, self._clock)

    def _start_batching(self) -> None:
        """Choose how rows are kept together; one at a time where that is not possible."""
        cache, self._form = rows_cache_for(
            self._model,
            self._settings.kv_type,
            loading.in_place_attention(self._settings),
            loading.compiles(self._settings),
        )
        self._adapters = Adapters(self._model, self._find_adapter, self._settings.max_adapters)
        slabs = cache.can_roll_back
        if not slabs and not prompt_caches.are_mergeable(prompt_caches.new_caches(self._model)):
            self._slots = 1
        weights, memory = loading.weight_bytes(self._model), loading.memory_bytes()
        weights += self._draft.weight_bytes if self._draft is not None else 0
        budget = kv_budget(self._settings, weights, memory)
        kept = self._settings.prefix_cache.share_of(budget)
        self._limits = EngineLimits(self._slots, budget - kept, weights, memory)
        self._pool_bytes = self._presize(cache, budget)
        self._adapters.select([0])
        self._chunks = chunk_program_for(self._model, cache)
        batch = Batch(cache, self._adapters)
        self._decoding = Decoding(
            batch, self._guiding, self._settings, self._clock, self._take, self._let_go, self._fail
        )
        capacity = capacity_for if self._chunks is not None else None
        self._reuse = reuse_for(self._record, self._settings, self._new_caches, kept, capacity)
        self._prompts = Prompts(
            self._model,
            self._adapters,
            self._new_caches,
            self._reuse,
            cache.stack,
            slabs,
            self._fail,
            self._is_cleared,
            self._say_first,
            self._clock,
            self._chunks,
        )

    def _presize(self, cache: RowsCache, budget: int) -> int:
        """Allocate slabs for short rows, and return how many bytes of slabs are kept without any.

        Compiled passes are for slabs of one size, which had better be the size for all rows.
        """
        chosen = self._settings.metal_optimizations
        if not chosen.memory_pool:
            return 0
        share = budget // _COMPILED_POOL_SHARE if cache.is_compiled else 0
        cache.presize(max(chosen.memory_pool_bytes, share), self._settings.max_rows)
        return max(chosen.memory_pool_bytes, cache.nbytes)

    def _new_caches(self) -> Caches:
        return prompt_caches.new_caches(self._model, self._form)

    def _take_guides(self) -> None:
        """Rows whose guides are ready may join; without any other row, wait a moment for one."""
        rows = self._rows.values()
        if self._decoding.is_idle and all(row.is_paused or (row.awaited_guide and not row.unfilled) for row in rows):
            self._guiding.wait()
        for row, error in self._guiding.arrived():
            self._fail(row, error)

    def _take_back(self) -> None:
        """Rows that were parked say the tokens they were stopped at, and are ready again."""
        returning, self._returning = self._returning, []
        for row in returning:
            held, row.held = row.held, []
            for reading in held:
                if not row.is_gone:
                    self._deliver(row, reading)
            if not row.is_gone:
                self._prompts.ready.append(row)

    def _let_go(self) -> None:
        """Rows leave the batch that are gone or paused, or whose last token is already on its way."""
        rows = self._decoding.batch.rows
        for index, row in enumerate(rows):
            if row.is_paused and not row.is_gone and not row.is_drawn_out:
                row.caches = self._decoding.batch.take(index)
                prompt_caches.start(prompt_caches.states(row.caches))
            row.is_parked = row.is_paused
        self._leave_prefixes()
        staying = [index for index, row in enumerate(rows) if not (row.is_gone or row.is_paused or row.is_drawn_out)]
        if len(staying) < len(rows):
            self._decoding.batch.keep(staying)

    def _leave_prefixes(self) -> None:
        """Rows that are about to leave the batch for good leave what they have to the prefix cache."""
        leaving = [index for index, row in enumerate(self._decoding.batch.rows) if row.is_gone or row.is_drawn_out]
        for index in leaving:
            row, is_alone = self._decoding.batch.rows[index], len(leaving) == len(self._decoding.batch.rows)
            self._reuse.leave(row, functools.partial(self._decoding.batch.cache.view, index), is_alone)

    def _forget(self, row: Row) -> None:
        if not row.is_gone:
            self._adapters.release(row.adapter)
        row.is_gone = True
        row.caches, row.chunk, row.held = None, None, []
        self._rows.pop(row.sequence.sequence_id, None)

    def _prefill(self) -> tuple[int, int]:
        """Tokens of prompts that were set going, and how many had gone before them."""
        if not self._prompts:
            return 0, 0
        decoding = len(self._decoding.batch.rows)
        is_busy = decoding > 0 or self._prompts.may_join
        most = self._settings.max_prefills if is_busy else self._slots
        self._prompts.admit(most, self._slots - decoding, is_busy)
        if is_busy:
            pace, before = self._decoding.pace, self._prompts.deepest
            budget = pace.allowance(decoding, before) if decoding else pace.budget
            return (self._prompts.advance(budget) if budget else 0), before
        return self._prompts.advance_alone(is_idle=self._decoding.is_idle), 0

    def _end_prefill_only(self) -> None:
        """Rows of which nothing but the prompt was wanted have ended."""
        for row in [row for row in self._prompts.ready if is_prefill_only(row.sequence)]:
            self._prompts.ready.remove(row)
            try:
                if not self._decoding.batch.rows:
                    self._prompts.settle([row])  # so that the account is true
            except Exception as error:
                self._fail(row, error)
                continue
            end = row.timeline.end_of_prefill(row.prompt_tokens, row.cached_tokens, self._clock())
            self._forget(row)
            self._outputs.put(SequenceOutput(row.sequence.sequence_id, "", (), end=end))

    def _decode(self, prefilled: int, before: int) -> int:
        """One decode step, beside so many prompt tokens behind others. Returns the number of tokens read."""
        try:
            decoding = len(self._decoding.batch.rows)
            joining = self._prompts.take_ready(self._slots - decoding, is_alone=not decoding)
            return self._decoding.step(joining, prefilled, before)
        except Exception as error:
            self._recover(error)
            return 0

    def _say_first(self, row: Row, logits: mx.array) -> None:
        """Draw a row's first token, and wait for it: it is to be on its way before the next step is built."""
        ((_, reading),) = first_step(row, logits, self._guiding.lone_mask(row)).read()
        self._deliver(row, reading)
        self._said_first = True

    def _take(self, row: Row, reading: Reading) -> None:
        if row.is_gone:
            return
        if row.is_parked:
            row.held.append(reading)
        else:
            self._deliver(row, reading)

    def _deliver(self, row: Row, reading: Reading) -> None:
        """Turn a token into an output, and end the row if it was the last."""
        if reading.token_id < 0:
            self._reuse.distrust(row)
            self._fail(row, GenerationFailed(_NOT_FINITE))
            return
        now = self._clock()
        if row.timeline.first_token_at is None:
            row.timeline.first_token_at = now
        row.ids.append(reading.token_id)
        followed = reading.followed or guiding.follow(row, reading.token_id)
        if followed.error is not None:
            self._fail(row, followed.error)
            return
        piece = row.answer.add(reading.token_id, followed.is_complete)
        logprobs = (self._outputs.logprob(reading.token_id, reading.logprob),) if reading.logprob is not None else ()
        end = None
        if piece.reason is not None:
            end = row.timeline.end(piece, row.answer, row.prompt_tokens, row.cached_tokens, now)
            if row.speculation is not None:
                end = attrs.evolve(end, drafts=row.speculation.counts)
            self._reuse.end(row)
            self._forget(row)
        sequence_id = row.sequence.sequence_id
        shown = logprobs if piece.token_ids else ()
        self._outputs.say(sequence_id, piece, shown, end)

    def _fail(self, row: Row, error: Exception) -> None:
        if not isinstance(error, ServingError):
            error = GenerationFailed(f"{type(error).__name__}: {error}")
        row.is_failed = True
        self._forget(row)
        if row in self._prompts.filling:
            self._prompts.filling.remove(row)
        self._outputs.put(SequenceOutput(row.sequence.sequence_id, "", (), error=describe(error)))

    def _recover(self, error: Exception) -> None:
        """A step of the batch failed: a lone row is at fault, of several each is put to the test."""
        rows = self._decoding.rows_at_stake
        _log.error("a step failed: its %d rows are computed again, or fail alone", len(rows), exc_info=error)
        self._decoding.drop()
        if len(rows) == 1:
            self._fail(rows[0], error)
            return
        for row in rows:
            row.restart()
            row.is_parked = False
        self._prompts.waiting.extendleft(reversed(rows))

    def _rest(self) -> None:
        """With no row left, nothing of the last ones stays in memory but what the pool may hold. What the allocator
        keeps is returned by `rest`, a little later: the last tokens do not wait for it."""
        if not self._rows:
            self._leave_prefixes()
            self._decoding.drop(self._pool_bytes)
            self._reuse.rest()

    def _is_cleared(self, row: Row) -> bool:
        """Decode one token of a suspect alone; it fails here, or may join the others."""
        alone = self._decoding.batch.anew()
        try:
            alone.join([row])
            ((_, reading),) = alone.sample(alone.forward(), self._guiding.lone_mask(row)).read()
        except Exception as error:
            self._fail(row, error)
            return False
        row.caches = alone.take(0)
        alone.keep([])
        row.filled = len(row.ids)
        row.is_suspect = False
        self._deliver(row, reading)
        return not row.is_gone
