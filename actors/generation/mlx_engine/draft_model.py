"""A small model that proposes what a large one will say, for all rows that want it at once.

It has caches of its own, kept by the same means as those of the batch, and is always somewhat behind: a row's prompt
is prefilled in chunks beside the steps of the batch, and what the row has said since the last proposal is taken in with
the next one. What was proposed and did not come true is rolled back then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import mlx.core as mx
import mlx.nn

from mlx_serving.actors.clock import Clock
from mlx_serving.actors.errors import ModelLoadFailed
from mlx_serving.actors.generation.mlx_engine import caches as prompt_caches
from mlx_serving.actors.generation.mlx_engine import composed_attention, launched_numbers, loading
from mlx_serving.actors.generation.mlx_engine.caches import Caches
from mlx_serving.actors.generation.mlx_engine.device import is_cpu
from mlx_serving.actors.generation.mlx_engine.row import Row
from mlx_serving.actors.generation.mlx_engine.rows_cache import Order
from mlx_serving.actors.generation.mlx_engine.sampling import DRAFTING, Draw
from mlx_serving.actors.generation.mlx_engine.slab_rows import rows_cache_for
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.actors.models.tokenizer import TextTokenizer
from mlx_serving.config.schema import Generation

_nn: Any = mlx.nn
"""Its modules carry no types."""
_TRIES = 4
_CHUNK = 64
"""Tokens of a prompt that are timed."""
_BITS, _GROUPS = 4, (64, 32)
_CLOSE = 12
"""Tokens that a row may be behind and still propose: they are taken in with the proposal, together with those of the
steps in flight."""


@attrs.frozen(eq=False)
class Drafts:
    """What was proposed to some rows. `probabilities` [rows, tokens, vocabulary] are those that it was drawn with, 0 in
    rows that accept nothing by chance; None if there are no others."""

    tokens: list[list[int]]
    probabilities: mx.array | None


class _Drawing:
    """Draws proposals as the rows themselves would draw.

    A row with a seed has the same number decide that will decide about its own token, so that the two agree often.
    """

    def __init__(self, rows: Sequence[Row], vocab_size: int) -> None:
        self._rows = [row.sampling for row in rows]
        self._draw = Draw([row.parameters for row in self._rows])
        self._vocab_size = vocab_size
        self._drawn: list[mx.array] = []
        self._place = 0

    def next(self, logits: mx.array) -> mx.array:
        """Tokens [rows] from logits [rows, vocabulary]."""
        logits = logits[:, : self._vocab_size]
        streams = [DRAFTING if row.rejects else 0 for row in self._rows]
        uniform = [row.uniform(self._place, stream) for row, stream in zip(self._rows, streams, strict=True)]
        if any(row.rejects for row in self._rows):
            weights = self._draw.weights(logits)
            self._drawn.append(weights / weights.sum(axis=-1, keepdims=True))
        self._place += 1
        return mx.maximum(self._draw(logits, uniform), 0).astype(mx.int32)

    def probabilities(self, places: Sequence[int]) -> mx.array | None:
        """Of all tokens drawn for the rows at these places."""
        if not self._drawn:
            return None
        rejecting = mx.array([self._rows[place].rejects for place in places], dtype=mx.float32)
        return mx.stack(self._drawn, axis=1)[mx.array(list(places))] * rejecting[:, None, None]


@attrs.define(eq=False)
class _Held:
    """A row's cache holds `length` of its ids and then `tail`, which was proposed."""

    row: Row
    length: int = 0
    tail: list[int] = attrs.field(factory=list)
    caches: Caches | None = None
    """While it is being prefilled."""

    @property
    def pending(self) -> list[int]:
        return self.row.ids[self.length :]

    def compare(self) -> int:
        """Find out what of the tail came true; how many tokens are to be rolled back."""
        ids, held = self.row.ids, self.length + len(self.tail)
        while self.tail and self.length < len(ids) and ids[self.length] == self.tail[0]:
            self.length += 1
            self.tail.pop(0)
        self.length, self.tail = min(self.length, len(ids) - 1), []
        return held - self.length


class DraftModel:
    """Made by `load_draft`. A pass of it is over all rows that it holds."""

    def __init__(self, model: Any, vocab_size: int, settings: Generation) -> None:
        self._model = model
        self._attending = composed_attention.around(model)
        self._vocab_size = vocab_size
        self._cache, self._form = rows_cache_for(
            model, settings.kv_type, loading.in_place_attention(settings), loading.compiles(settings)
        )
        self._held: list[_Held] = []
        self._filling: list[_Held] = []
        self._prompt_seconds = 0.0

    @property
    def can_roll_back(self) -> bool:
        return self._cache.can_roll_back

    @property
    def weight_bytes(self) -> int:
        return loading.weight_bytes(self._model)

    def follow(self, rows: Sequence[Row], budget: int) -> None:
        """Hold these rows and no others, and prefill up to `budget` tokens of those that are far behind."""
        wanted = set(rows)
        self._keep([number for number, held in enumerate(self._held) if held.row in wanted])
        self._filling = [held for held in self._filling if held.row in wanted]
        self._send_back()
        known = {held.row for held in [*self._held, *self._filling]}
        self._filling += [_Held(row) for row in rows if row not in known]
        for held in self._filling:
            budget -= self._fill(held, budget)
        ready = [held for held in self._filling if len(held.pending) <= _CLOSE]
        if ready:
            self._filling = [held for held in self._filling if held not in ready]
            self._join(ready)

    def is_close(self, row: Row) -> bool:
        """Whether it can propose something to the row without having to catch up first."""
        return any(held.row is row and len(held.pending) <= _CLOSE for held in self._held)

    def seconds_behind(self, row: Row) -> float:
        """What it would cost to take the row up: 0 if it has been."""
        is_held = any(held.row is row for held in [*self._held, *self._filling])
        return 0.0 if is_held else len(row.ids) * self._prompt_seconds

    def is_ready(self, row: Row) -> bool:
        """Whether it can propose something to the row."""
        return any(held.row is row for held in self._held)

    def propose(self, rows: Sequence[Row], count: int) -> Drafts:
        """`count` tokens for each of these rows, all of them ready. Waits for the device."""
        self._cache.drop([held.compare() for held in self._held])
        order = self._cache.reserve(count + max(len(held.pending) for held in self._held))
        if order is not None:
            self._reorder(order)
        wanted = set(rows)
        asked = [held.row in wanted for held in self._held]
        drawing = _Drawing([held.row for held in self._held], self._vocab_size)
        drafts = [drawing.next(self._take_in(asked))]
        for _ in range(count - 1):
            prompt_caches.start([drafts[-1]])  # it is computed while the next pass is built
            drafts.append(drawing.next(self._cache.forward(drafts[-1][:, None])[:, -1]))
        tokens: Any = mx.stack(drafts, axis=1).tolist()
        idle = [0 if each else count - 1 for each in asked]
        self._cache.drop(idle)
        for held, proposed, is_asked in zip(self._held, tokens, asked, strict=True):
            held.tail = proposed[: count - 1] if is_asked else []
        places = {held.row: place for place, held in enumerate(self._held)}
        return Drafts([tokens[places[row]] for row in rows], drawing.probabilities([places[row] for row in rows]))

    def measure(self, clock: Clock) -> float:
        """Seconds of a pass of one token; those of a token of a prompt are kept. Of each the fastest of some, as the
        first compiles what it needs. A prompt goes in as in `follow`: MLX's fused attention would prepare each time."""
        caches = prompt_caches.new_caches(self._model, self._form)
        self._prompt_seconds = min(self._timed(caches, _CHUNK, clock) for _ in range(_TRIES)) / _CHUNK
        return min(self._timed(caches, 1, clock) for _ in range(_TRIES))

    def _timed(self, caches: Caches, tokens: int, clock: Clock) -> float:
        before = clock()
        mx.eval(mx.argmax(self._attending(mx.zeros((1, tokens), dtype=mx.int32), cache=caches)[:, -1], axis=-1))
        return clock() - before

    def clear(self) -> None:
        """Hold no row."""
        self._cache = self._cache.fresh()
        self._held, self._filling = [], []

    def _take_in(self, asked: Sequence[bool]) -> mx.array:
        """Logits [rows, vocabulary] after what each row has said since the last proposal; rows not asked take in
        nothing."""
        pending = [held.pending if is_asked else [] for held, is_asked in zip(self._held, asked, strict=True)]
        width = max(map(len, pending))
        logits = self._cache.forward(launched_numbers.table(pending, width))
        self._cache.drop([width - len(ids) for ids in pending])
        for held, ids in zip(self._held, pending, strict=True):
            held.length += len(ids)
        last = [place * width + max(0, len(ids) - 1) for place, ids in enumerate(pending)]
        return logits.reshape(-1, logits.shape[-1])[launched_numbers.integers(last)]

    def _fill(self, held: _Held, budget: int) -> int:
        """Prefill a row up to its last id; how many tokens that took."""
        count = max(0, min(len(held.pending) - 1, budget))
        if held.caches is None:
            held.caches = prompt_caches.new_caches(self._model, self._form)
        if count:
            chunk = launched_numbers.integers(held.pending[:count])
            self._attending(chunk[None], cache=held.caches)
            prompt_caches.start(prompt_caches.states(held.caches))
            held.length += count
        return count

    def _send_back(self) -> None:
        """Rows that have fallen far behind are prefilled again from where they stand."""
        self._cache.drop([held.compare() for held in self._held])
        far = [number for number, held in enumerate(self._held) if len(held.pending) > _CLOSE]
        for number in far:
            self._held[number].caches = self._cache.take(number)
            self._filling.append(self._held[number])
        if far:
            self._keep([number for number in range(len(self._held)) if number not in far])

    def _join(self, ready: Sequence[_Held]) -> None:
        added = []
        for held in ready:
            assert held.caches is not None
            added.append(held.caches)
            held.caches = None
        order = self._cache.join(added)
        self._held = [*self._held, *ready]
        self._reorder(order)

    def _keep(self, numbers: Sequence[int]) -> None:
        if len(numbers) < len(self._held):
            self._reorder(self._cache.keep(numbers))

    def _reorder(self, order: Order) -> None:
        self._held = [self._held[number] for number in order]


def load_draft(record: ModelRecord, target: ModelRecord, tokenizer: TextTokenizer, settings: Generation) -> DraftModel:
    """The draft model of `record` for `target`, whose tokenizer is given.

    Raises ModelLoadFailed when it cannot run, its vocabulary differs, or its caches cannot be rolled back.
    """
    check_vocabulary(record, target, TextTokenizer.load(record.path), tokenizer)
    model = loading.load_weights(record)
    kind = settings.speculation.draft_weights
    if kind == "4bit" or (kind == "auto" and is_cpu()):
        round_weights(model)
    loading.speed_up(model, settings)
    loading.widen(model, record)
    draft = DraftModel(model, min(record.vocab_size, target.vocab_size), settings)
    if not draft.can_roll_back:
        raise ModelLoadFailed(
            f"{record.name} cannot be a draft model: its architecture {record.architecture} keeps state that cannot be "
            "rolled back",
            model=target.name,
        )
    return draft


def round_weights(model: Any) -> int:
    """Quantise to 4 bits what takes more; returns how many layers changed.

    A draft model's time counts more than its last decimals, and the native products are fastest with 4 bits.
    """
    wider = [module for module in model.modules() if getattr(module, "mode", "") == "affine" and module.bits > _BITS]
    for module in wider:
        weight = mx.dequantize(module.weight, module.scales, module.biases, module.group_size, module.bits)
        module.group_size = next((size for size in _GROUPS if weight.shape[1] % size == 0), module.group_size)
        module.bits = _BITS
        module.weight, module.scales, module.biases = mx.quantize(weight, module.group_size, _BITS)
        mx.eval(module.parameters())
    dense: list[Any] = []

    def is_dense(_: str, module: Any) -> bool:
        suits = hasattr(module, "to_quantized") and module.weight.shape[-1] % _GROUPS[0] == 0
        dense.extend([module] if suits else [])
        return suits

    _nn.quantize(model, _GROUPS[0], _BITS, class_predicate=is_dense)
    mx.eval(model.parameters())
    return len(wider) + len(dense)


def check_vocabulary(draft: ModelRecord, target: ModelRecord, theirs: TextTokenizer, ours: TextTokenizer) -> None:
    """Raise ModelLoadFailed unless both give every token the same id."""
    own, other = (each.backend.get_vocab(with_added_tokens=True) for each in (ours, theirs))
    if own == other:
        return
    differing = [token for token in own.keys() | other.keys() if own.get(token) != other.get(token)]
    token = min(differing, key=lambda each: (min(own.get(each, len(own)), other.get(each, len(other))), each))
    raise ModelLoadFailed(
        f"the draft model {draft.name} has another vocabulary than {target.name}: {len(differing)} tokens differ, as "
        f"{token!r}, which is {other.get(token, 'unknown')} in {draft.name} and {own.get(token, 'unknown')} in "
        f"{target.name}; choose a draft model of the same family",
        model=target.name,
    )
