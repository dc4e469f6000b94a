"""Rows in slabs, in groups by length: a long row makes no short one pay, in memory or in time.

A group's capacity is one of a series; a row that fills its group moves to one of the next capacity, which copies that
row alone. The rows of a batch are those of the first group, then those of the next longer one, and so on.

Where one operation takes all groups (`Program.joins_groups`), a further one costs little: capacities are close to what
rows need, and a group of long rows that would have to copy much in order to grow is left as it is, a further one of its
capacity follows. Elsewhere each group is operations of its own, compiled ones for its shapes: capacities are few, and
there is one group of each. Slots double, and halve once three in four are free; a group without rows goes. Only what
the memory pool holds stays in any case.

Longer than most modules: how a batch's rows lie in groups is one state, and what moves them has to change all of it.
"""

from __future__ import annotations

import bisect
import itertools
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import attrs
import mlx.core as mx
import structlog
from mlx_lm.models.cache import KVCache

from mlx_serving.actors.errors import ModelLoadFailed
from mlx_serving.actors.generation.mlx_engine import attention_kernels, composed_attention
from mlx_serving.actors.generation.mlx_engine import caches as prompt_caches
from mlx_serving.actors.generation.mlx_engine.attention import redirect_attention
from mlx_serving.actors.generation.mlx_engine.caches import Caches
from mlx_serving.actors.generation.mlx_engine.kv_format import KvFormat
from mlx_serving.actors.generation.mlx_engine.kv_slabs import SlabGroup
from mlx_serving.actors.generation.mlx_engine.rows_cache import MergedRows, Order, RowsCache
from mlx_serving.actors.generation.mlx_engine.slab_pass import InPlace, in_place_kernel
from mlx_serving.actors.generation.mlx_engine.slab_program import Program, numbers_of_rows
from mlx_serving.native.kernels.stacks import DecoderStack

_log = structlog.get_logger(actor="engine")

SMALLEST_CAPACITY = 512
CAPACITY_FACTOR = 4
_SHORT, _STEPS_TO_TWICE = 2048, 4
"""Where capacities are close: up to that of short rows each is twice the one before, further on there are so many from
one power of two to the next."""
_MOST_COPIED = 32 << 20
"""Bytes of a group of longer rows that are copied for it to grow, where another group would do."""
_REHEARSED_CAPACITIES = tuple(SMALLEST_CAPACITY * CAPACITY_FACTOR**more for more in (0, 1, 2))
_WORDS, _DIGITS, _PROBED = 1200, (3, 1, 4, 1, 5), 5
_TOLERANCE = 0.05
"""Of the largest logit: half precision sums in another order."""


def capacity_for(tokens: int) -> int:
    """The smallest capacity of the series that holds so many."""
    capacity = SMALLEST_CAPACITY
    while capacity < tokens:
        capacity *= CAPACITY_FACTOR
    return capacity


def close_capacity_for(tokens: int) -> int:
    """The smallest capacity of the closer series that holds so many."""
    capacity = SMALLEST_CAPACITY
    while capacity < tokens:
        capacity *= 2
    if capacity <= _SHORT:
        return capacity
    step = capacity // (2 * _STEPS_TO_TWICE)
    return -(-tokens // step) * step


def rehearsed_capacities(longest: int) -> list[int]:
    """Of slabs for which passes are compiled at load, if rows are of up to `longest` tokens."""
    return [capacity for capacity in _REHEARSED_CAPACITIES if capacity <= capacity_for(longest)]


class SlabRows:
    """The rows of one batch. See `RowsCache`."""

    can_roll_back = True

    def __init__(self, program: Program, templates: Caches, form: KvFormat) -> None:
        """`templates`: plain caches with at least one token, for the shapes of keys and values."""
        self.program = program
        self.templates = templates
        self.form = form
        self._groups: list[SlabGroup] = []
        self._presized: SlabGroup | None = None
        self._most_unused = 0
        self._owed: tuple[int, int] | None = None
        """What the one whose place this takes was presized with."""
        self._pool: tuple[int, int] | None = None
        self._capacity_for = close_capacity_for if program.joins_groups else capacity_for

    @property
    def is_compiled(self) -> bool:
        return self.program.is_compiled

    @property
    def writes_in_place(self) -> bool:
        return self.program.kernel is not None

    @property
    def stack(self) -> DecoderStack | None:
        return self.program.kernel.stack if self.program.kernel is not None else None

    @property
    def widest(self) -> int:
        return self.program.widest if self.program.widest > 1 else sys.maxsize

    @property
    def nbytes(self) -> int:
        return sum(group.nbytes for group in self._groups)

    def capacities(self, longest: int) -> tuple[int, ...]:
        found = [self._capacity_for(1)]
        while found[-1] < longest:
            found.append(self._capacity_for(found[-1] + 1))
        return tuple(found)

    def fresh(self) -> SlabRows:
        another = SlabRows(self.program, self.templates, self.form)
        another._owed = self._pool or self._owed
        return another

    def emptied(self, most_bytes: int) -> SlabRows:
        if not self.writes_in_place:
            # Slabs that are copied at a step had better be no larger than their rows.
            return self.fresh()
        for group in self._groups:
            group.lengths = []
        while self.nbytes > most_bytes:
            self._groups.pop()
        if self._owed is not None:
            (owed_bytes, rows), self._owed, self._groups = self._owed, None, []
            try:
                self.presize(min(owed_bytes, most_bytes), rows)
            except Exception as error:  # rows do without
                _log.warning("the memory pool is not there again", reason=f"{type(error).__name__}: {error}")
        return self

    def presize(self, most_bytes: int, rows: int) -> None:
        """Allocate what `rows` short rows need, or as much of it as the bytes allow, if slabs are written in place."""
        if not self.writes_in_place:
            return
        self._pool, self._most_unused = (most_bytes, rows), most_bytes
        group = SlabGroup(SMALLEST_CAPACITY, self.form, self.templates)
        group.allocate(1)
        slots = 1
        while 2 * slots <= rows and 2 * slots * group.nbytes <= most_bytes:
            slots *= 2
        if group.nbytes <= most_bytes:
            group.allocate(slots)
            mx.eval(group.arrays)
            self._groups, self._presized = [group], group

    def rehearse(self, rows: int, longest: int) -> None:
        """With the slabs that there are."""
        if not self.is_compiled or not self._groups:
            return
        short = self._groups[0]
        counts = [count for count in numbers_of_rows(rows) if min(rows, count) <= short.slots]
        try:
            for capacity in rehearsed_capacities(longest):
                longer = self._lone(capacity) if capacity > short.capacity else None
                for count in counts:
                    short.lengths = [0] * min(rows, count)
                    groups = [short, longer] if longer is not None else [short]
                    tokens = mx.zeros((sum(len(group.lengths) for group in groups), 1), dtype=mx.int32)
                    mx.eval(self.program(tokens, groups, is_plain=True))
        finally:
            short.lengths = []

    def _lone(self, capacity: int) -> SlabGroup:
        """A group of one row without tokens."""
        group = SlabGroup(capacity, self.form, self.templates)
        group.allocate(1)
        group.lengths = [0]
        return group

    @property
    def lengths(self) -> list[int]:
        """Of all rows, in order."""
        return [length for group in self._groups for length in group.lengths]

    def join(self, added: Sequence[Caches]) -> Order:
        self._settle()
        tags = self._tags()
        count = len(self.lengths)
        for number, caches in enumerate(added):
            length = caches[0].offset
            group = self._group_for(self._capacity_for(length + 1))
            group.add(caches, length)
            tags.setdefault(group, []).append(count + number)
        return self._flat(tags)

    def keep(self, indices: Sequence[int]) -> Order:
        self._settle()
        tags = self._tags()
        kept = set(indices)
        for group in self._groups:
            for slot in reversed(range(len(group.lengths))):
                if tags[group][slot] not in kept:
                    _remove(group, slot, tags[group])
        self._free_unused()
        return self._flat(tags)

    def take(self, index: int) -> Caches:
        self._settle()
        group, slot = self._find(index)
        return group.take(slot)

    def view(self, index: int) -> Caches:
        self._settle()
        group, slot = self._find(index)
        return group.view(slot)

    def reserve(self, tokens: int) -> Order | None:
        if all(max(group.lengths, default=0) + tokens <= group.capacity for group in self._groups):
            return None
        self._settle()
        tags = self._tags()
        for group in list(self._groups):
            longer = [self._capacity_for(each + tokens) for each in group.lengths if each + tokens > group.capacity]
            left = Counter(longer)
            for slot in reversed(range(len(group.lengths))):
                length = group.lengths[slot]
                if length + tokens > group.capacity:
                    capacity = self._capacity_for(length + tokens)
                    larger = self._group_for(capacity, left[capacity])
                    left[capacity] -= 1
                    larger.add(group.take(slot), length)
                    tags.setdefault(larger, []).append(tags[group][slot])
                    _remove(group, slot, tags[group])
        self._free_unused()
        return self._flat(tags)

    def forward(self, tokens: mx.array, is_plain: bool = True) -> mx.array:
        filled = [group for group in self._groups if group.lengths]
        logits = self.program(tokens, filled, is_plain)
        for group in filled:
            group.lengths = [length + tokens.shape[1] for length in group.lengths]
        return logits

    def padded(self, tokens: int) -> int:
        return self.program.padded(tokens)

    def drop(self, counts: Sequence[int]) -> None:
        left = iter(counts)
        for group in self._groups:
            group.lengths = [length - next(left) for length in group.lengths]

    def _settle(self) -> None:
        """Slabs are about to be read and written by MLX's operations."""
        if self.writes_in_place:
            attention_kernels.settle()

    def _group_for(self, capacity: int, rows: int = 1) -> SlabGroup:
        """One with a slot for one more row, or for as many of `rows` as it takes: at once, for what grows is copied."""
        for group in self._groups:
            if group.capacity == capacity and len(group.lengths) < self._most_slots(group):
                break
        else:
            group = SlabGroup(capacity, self.form, self.templates)
            # In one order: passes over the same groups are the same to what compiles them.
            bisect.insort(self._groups, group, key=lambda each: each.capacity)
        if rows > 1:
            group.make_room(min(rows, self._most_slots(group) - len(group.lengths)))
        return group

    def _most_slots(self, group: SlabGroup) -> int:
        if not self.program.joins_groups or group.capacity <= _SHORT:
            return sys.maxsize
        grown = 2 * _MOST_COPIED // group.slot_bytes
        return max(group.slots, 1 << grown.bit_length() >> 1, 1)

    def _free_unused(self) -> None:
        """Slabs without rows go and those with few of them shrink, the longest first, but for what the pool holds."""
        for group in reversed(self._groups.copy()):
            if group is self._presized or self.nbytes <= self._most_unused:
                continue
            if group.lengths:
                group.shrink()
            else:
                self._groups.remove(group)

    def _find(self, index: int) -> tuple[SlabGroup, int]:
        for group in self._groups:
            if index < len(group.lengths):
                return group, index
            index -= len(group.lengths)
        raise IndexError(index)

    def _tags(self) -> dict[SlabGroup, list[int]]:
        """The number of each row, by its group."""
        numbers = iter(range(len(self.lengths)))
        return {group: [next(numbers) for _ in group.lengths] for group in self._groups}

    def _flat(self, tags: dict[SlabGroup, list[int]]) -> Order:
        return [number for group in self._groups for number in tags.get(group, ())]


def _remove(group: SlabGroup, slot: int, order: list[int]) -> None:
    """A row goes; `order` has the numbers of the group's rows."""
    group.remove(slot)
    order[slot] = order[-1]
    order.pop()


def rows_cache_for(
    model: Any, kv_type: str = "model", in_place: str = "auto", compiles: bool = False
) -> tuple[RowsCache, KvFormat]:
    """Slabs where the model computes the same with them; otherwise mlx-lm's batched caches.

    `in_place`: the setting of the kernel that writes in place. `compiles`: compile the steps that do. Raises
    ModelLoadFailed where `kv_type` asks for what the caches cannot hold.
    """
    caches = prompt_caches.new_caches(model)
    reason = "not all of its layers keep plain keys and values"
    is_plain = all(type(cache) is KVCache for cache in caches)
    if is_plain and redirect_attention(model, composed_attention.quantised_attention):
        expected: mx.array | None = _probe(model, caches)
        sizes = {part.shape[3] for cache in caches for part in (cache.keys, cache.values)}
        form = KvFormat.of(kv_type, sizes)
        templates = [form.converted(cache) for cache in caches]
        if form.bits is not None:
            # What is rounded is another model: kernels are held to what it says by MLX's operations.
            copying = SlabRows(Program(model, len(caches)), templates, form)
            is_usable = _agrees(SlabRows(copying.program, caches, KvFormat()), expected, caches)
            expected = _logits(copying, caches) if is_usable else None
        for chosen in _ways(in_place_kernel(model, sizes, in_place, form)):
            program = Program(model, len(caches), chosen, compiles and chosen is not None)
            if _agrees(SlabRows(program, templates, form), expected, caches):
                return SlabRows(program, templates, form), form
        reason = "its attention does not go through the one function that reads them"
    if kv_type != "model":
        raise ModelLoadFailed(f"generation.kv_type is {kv_type}, but this model's caches stay as they are: {reason}")
    return MergedRows(model), KvFormat()


def _ways(kernel: InPlace | None) -> list[InPlace | None]:
    """To keep keys and values, the best first. A kernel whose stack fails may do layer by layer, one that fails with
    several tokens for one."""
    if kernel is None:
        return [None]
    alone = attrs.evolve(kernel, stack=None)
    return list(dict.fromkeys([kernel, alone, attrs.evolve(alone, most_tokens=1), None]))


def probe_ids(model: Any, count: int) -> list[int]:
    """Ids to try a model with: of ordinary tokens, where its vocabulary is large.

    The first ones are often those of special tokens. On a text of these SmolLM2's logits in bfloat16 are off by a
    seventh of the largest, on words by a fiftieth: too much there to tell a kernel that is wrong from one that rounds.
    """
    is_large = getattr(getattr(model, "args", None), "vocab_size", 0) > 2 * _WORDS
    return [(_WORDS if is_large else 0) + each for each in itertools.islice(itertools.cycle(_DIGITS), count)]


def _probe(model: Any, caches: Caches) -> mx.array:
    """Fill plain caches with a few tokens; the logits after each of the last two, [2, vocabulary]."""
    ids = probe_ids(model, _PROBED)
    model(mx.array([ids[:-2]], dtype=mx.int32), cache=caches)
    for cache in caches:
        mx.eval(cache.keys, cache.values)
    logits: mx.array = model(mx.array([ids[-2:]], dtype=mx.int32), cache=caches)
    return logits[0]


def _agrees(rows: SlabRows, expected: mx.array | None, caches: Caches) -> bool:
    """Whether slabs give these logits, see `_logits`."""
    found = _logits(rows, caches) if expected is not None else None
    if found is None or expected is None:
        return False
    if not agree(found, expected):
        _log.warning("slabs of this kind are not used", reason="the model says something else with them")
        return False
    return True


def _logits(rows: SlabRows, caches: Caches) -> mx.array | None:
    """What two rows say by slabs: of different lengths with a token each, both of one with two. None if they fail."""

    def first(tokens: int) -> Caches:
        copies = []
        for cache in caches:
            copy: Any = KVCache()  # type: ignore[no-untyped-call]
            copy.keys, copy.values = cache.keys[:, :, :tokens], cache.values[:, :, :tokens]
            copy.offset = tokens
            copies.append(rows.form.converted(copy))
        return copies

    done, last = _PROBED - 2, probe_ids(rows.program.model, _PROBED)[-2:]
    try:
        rows.join([first(done), first(done + 1)])
        narrow = rows.forward(mx.array(last, dtype=mx.int32)[:, None])
        rows.keep([])
        rows.join([first(done), first(done)])
        wide = rows.forward(mx.array([last, last], dtype=mx.int32))
        found = mx.concatenate([narrow.swapaxes(0, 1), wide]).astype(mx.float32)
        mx.eval(found)
    except (
        Exception
    ) as error:  # an architecture that wants something else of its caches, a kernel that does not compile
        _log.warning("slabs of this kind are not used", reason=f"{type(error).__name__}: {error}")
        return None
    return found


def agree(found: mx.array, expected: mx.array) -> bool:
    """Whether logits are the same, but for the order of sums."""
    wanted = expected.astype(mx.float32)
    return bool((mx.max(mx.abs(found.astype(mx.float32) - wanted)) <= _TOLERANCE * mx.max(mx.abs(wanted))).item())
