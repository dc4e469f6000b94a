"""An engine that says prepared things as fast as Python can, for tests and benchmarks of all but the model.

It serves a real model's record and keeps every rule of the protocol: the prefill budget, rows, limits, stop
strings, pause, resume and cancel. The token at each position is a function of prompt, seed, choice and
position, and its text is " w" and its id, whatever the model's tokenizer would say.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable

import attrs

from mlx_serving.actors.clock import Clock, monotonic
from mlx_serving.actors.errors import describe
from mlx_serving.actors.generation.answer import Answer, Timeline
from mlx_serving.actors.generation.capacity import kv_budget
from mlx_serving.actors.generation.engine import EngineLimits, HeldPrefixes, StepReport
from mlx_serving.actors.generation.pooling import OutputPool
from mlx_serving.actors.generation.request import answer_limit, is_prefill_only, prompt_of
from mlx_serving.actors.memory import machine_bytes
from mlx_serving.actors.messages.admission import SequenceOutput
from mlx_serving.actors.messages.batching import SequenceQueued
from mlx_serving.actors.messages.values import CacheStats, CacheTier, ModelInfo, TokenLogprob
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.config.schema import Generation

Script = Callable[[SequenceQueued, int], int]
"""The token id a sequence says at a position of its answer, from 0. An exception fails that sequence."""


class _Words:
    """The scripted decoder: one word a token."""

    def add(self, token_id: int) -> str:
        return f" w{token_id}"

    def flush(self) -> str:
        return ""


@attrs.define(eq=False)
class _Row:
    sequence: SequenceQueued
    answer: Answer
    timeline: Timeline
    prompt_tokens: int
    origin: int
    """What the tokens are counted from: a hash of prompt, seed and choice."""
    unread: int
    """Prompt tokens still to be taken in."""
    paused: bool = False


class ScriptedEngine:
    """Without `script` it never says an end-of-sequence token, so that answers have exactly `max_tokens`."""

    def __init__(
        self,
        record: ModelRecord,
        settings: Generation,
        script: Script | None = None,
        clock: Clock = monotonic,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        """`wait` is called with `scripted_step_seconds` in every step that has work."""
        self._record = record
        self._settings = settings
        self._script = script
        self._clock = clock
        self._wait = wait
        self._eos_ids = frozenset(record.eos_token_ids)
        self._pool = OutputPool(settings.object_pooling)
        self._rows: dict[int, _Row] = {}
        self._prefilling: dict[int, _Row] = {}
        self._decoding: dict[int, _Row] = {}

    def load(self) -> tuple[ModelInfo, EngineLimits]:
        slots, memory = self._settings.max_rows, machine_bytes()
        kv_bytes = kv_budget(self._settings, 0, memory)
        return self._record.info(), EngineLimits(slots, kv_bytes, self._record.bytes, memory)

    def submit(self, sequence: SequenceQueued, started_at: float) -> None:
        prompt = prompt_of(sequence, self._record)
        limit = answer_limit(sequence, len(prompt), self._record)
        answer = Answer(sequence.stopping, limit, self._eos_ids, _Words(), sequence.format)
        seed = (sequence.sampling.seed or 0) * 31 + sequence.index
        origin = zlib.crc32(sequence.prompt_ids, seed & 0xFFFFFFFF)
        timeline = Timeline(sequence.queued_at, started_at)
        row = _Row(sequence, answer, timeline, len(prompt), origin, unread=len(prompt) - 1)
        self._rows[sequence.sequence_id] = row
        self._enqueue(row)

    def step(self) -> StepReport:
        if self._settings.scripted_step_seconds and self.pending:
            self._wait(self._settings.scripted_step_seconds)
        self._pool.begin()
        ready = list(self._decoding.values())[: self._settings.max_rows]
        now = self._clock()
        outputs = tuple(self._say(row, now) for row in ready)
        prefilled = self._prefill()
        answering = sum(not is_prefill_only(row.sequence) for row in ready)
        return StepReport(outputs, rows=answering, tokens=answering, prefill_tokens=prefilled)

    def cancel(self, sequence_id: int) -> None:
        self._rows.pop(sequence_id, None)
        self._prefilling.pop(sequence_id, None)
        self._decoding.pop(sequence_id, None)

    def pause(self, sequence_id: int) -> None:
        row = self._rows.get(sequence_id)
        if row is not None:
            row.paused = True
            self._prefilling.pop(sequence_id, None)
            self._decoding.pop(sequence_id, None)

    def resume(self, sequence_id: int) -> None:
        row = self._rows.get(sequence_id)
        if row is not None and row.paused:
            row.paused = False
            self._enqueue(row)

    @property
    def pending(self) -> int:
        return len(self._prefilling) + len(self._decoding)

    def grant(self, kv_bytes: int) -> None:
        """It has no keys and values."""

    def cache_stats(self) -> CacheStats:
        """It keeps no prefixes."""
        return CacheStats(enabled=False)

    def clear_cache(self, tier: CacheTier) -> None:
        """There is nothing to clear."""

    def rest(self) -> None:
        """There is nothing to give back."""

    def held_prefixes(self) -> HeldPrefixes | None:
        return None

    def close(self) -> None:
        for rows in (self._rows, self._prefilling, self._decoding):
            rows.clear()

    def _enqueue(self, row: _Row) -> None:
        stage = self._prefilling if row.unread else self._decoding
        stage[row.sequence.sequence_id] = row

    def _prefill(self) -> int:
        """Take in at most the budget; a prompt that is done says its first token in the next step."""
        budget = self._settings.prefill_tokens
        for row in list(self._prefilling.values())[: self._settings.max_prefills]:
            taken = min(budget, row.unread)
            budget -= taken
            row.unread -= taken
            if not row.unread:
                del self._prefilling[row.sequence.sequence_id]
                self._enqueue(row)
        return self._settings.prefill_tokens - budget

    def _say(self, row: _Row, now: float) -> SequenceOutput:
        position = row.answer.tokens
        if position == 0:
            row.timeline.first_token_at = now
        sequence_id = row.sequence.sequence_id
        if is_prefill_only(row.sequence):
            self.cancel(sequence_id)
            return SequenceOutput(sequence_id, "", (), end=row.timeline.end_of_prefill(row.prompt_tokens, 0, now))
        try:
            token_id = self._token(row, position)
        except Exception as error:
            self.cancel(sequence_id)
            return SequenceOutput(sequence_id, "", (), error=describe(error))
        piece = row.answer.add(token_id)
        logprobs = self._logprobs(row, token_id) if row.sequence.sampling.logprobs and piece.token_ids else ()
        if piece.reason is None:
            return self._pool.output(sequence_id, piece, logprobs)
        self.cancel(sequence_id)
        end = row.timeline.end(piece, row.answer, row.prompt_tokens, 0, now)
        return self._pool.output(sequence_id, piece, logprobs, end)

    def _token(self, row: _Row, position: int) -> int:
        if self._script is not None:
            return self._script(row.sequence, position)
        token_id = (row.origin + position * 2654435761) % self._record.vocab_size
        while token_id in self._eos_ids:
            token_id = (token_id + 1) % self._record.vocab_size
        return token_id

    def _logprobs(self, row: _Row, token_id: int) -> tuple[TokenLogprob, ...]:
        """The script is certain of what it says."""
        word = f" w{token_id}"
        top = ((token_id, word, 0.0),) if row.sequence.sampling.top_logprobs else ()
        return (TokenLogprob(token_id, word, 0.0, top),)
