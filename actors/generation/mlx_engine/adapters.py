"""LoRA adapters beside one model: rows with different ones, and with none, share a forward pass.

For every linear layer that some adapter changes, the matrices of all of them stand in two stacks, A [slots, rank, in]
and B [slots, rank, out], padded with zeros to the largest rank; slot 0 is all zeros and stands for no adapter. `select`
says which slot each row of the next forward passes takes. While that is 0 for all of them, a layer does what it did
before. Where it is the same for all, two small products are added; where it differs, the same two over all slots at
once, with every row's share of the other slots masked out between them, which needs no copy of a matrix for each row.
The sum is mlx-lm's: y + scale (x A) B in the type of x (Hu et al. 2021, "LoRA").

An adapted layer keeps its place, its weights and its class, of which it becomes a sub-class: whatever else makes it
faster goes on to. Adapters are loaded between steps, when a row first names them, and leave when their place is needed
and no row uses them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import mlx.core as mx
import mlx.nn

from mlx_serving.actors.errors import GenerationFailed, ModelLoadFailed, ModelNotFound
from mlx_serving.actors.models.adapter import AdaptedLayer, AdapterRecord
from mlx_serving.native.kernels.layers import inputs_of, outputs_of

_nn: Any = mlx.nn
"""Its modules carry no types."""

FindAdapter = Callable[[str], AdapterRecord]
"""The record of an adapter; raises ModelNotFound or ModelLoadFailed."""

NONE = 0
"""The slot of rows without an adapter."""


def no_adapter(name: str) -> AdapterRecord:
    """Where there are none."""
    raise ModelNotFound(f"there is no adapter {name!r}", field="model")


@attrs.define(eq=False)
class _Selection:
    """One `slot` with its `scale` for all rows, or, where `slot` is None, `shares` [rows, 1, slots x rank]: the scale
    where a column of the stacks is of the row's slot, and 0 elsewhere."""

    slot: int | None = NONE
    scale: float = 0.0
    shares: mx.array | None = None


class _Stacks:
    """The matrices of one layer: `a` [slots, rank, in], `b` [slots, rank, out]."""

    def __init__(self, selection: _Selection, adapted: AdaptedLayer) -> None:
        self._selection = selection
        self.a = mx.zeros((1, 1, adapted.inputs))
        self.b = mx.zeros((1, 1, adapted.outputs))

    def put(
        self, slot: int, shape: tuple[int, int], kind: mx.Dtype, matrices: tuple[mx.array, mx.array] | None
    ) -> None:
        """Fill a slot of stacks of `shape` (slots, rank); without matrices it changes nothing in this layer."""
        self.a, self.b = (_resized(stack, shape, kind) for stack in (self.a, self.b))
        if matrices is None:
            self.a[slot], self.b[slot] = 0, 0
            return
        for stack, matrix in zip((self.a, self.b), matrices, strict=True):
            stack[slot] = mx.pad(matrix.astype(kind), [(0, shape[1] - matrix.shape[0]), (0, 0)])

    def finish(self) -> list[mx.array]:
        """Prepare the views of the stacks; the arrays to evaluate."""
        self._each = [(self.a[slot].T, self.b[slot]) for slot in range(self.a.shape[0])]
        self._all = (self.a.reshape(-1, self.a.shape[2]).T, self.b.reshape(-1, self.b.shape[2]))
        return [*self._all, *(view for views in self._each for view in views)]

    def change(self, x: mx.array, y: mx.array) -> mx.array:
        """`y`, the layer's output for `x` [rows, tokens, in] or [rows, in], with the selected adapters' share."""
        chosen = self._selection
        if chosen.slot is not None:
            a, b = self._each[chosen.slot]
            return _added(y, x @ a, b, chosen.scale)
        shares = chosen.shares
        assert shares is not None
        if x.shape[0] != shares.shape[0]:
            raise GenerationFailed(f"adapters were chosen for {shares.shape[0]} rows and there are {x.shape[0]}")
        a, b = self._all
        return _added(y, (x @ a) * (shares if x.ndim == 3 else shares[:, 0]), b, 1.0)

    @property
    def is_needed(self) -> bool:
        return self._selection.slot != NONE


def _resized(stack: mx.array, shape: tuple[int, int], kind: mx.Dtype) -> mx.array:
    slots, rank = shape
    return mx.pad(stack.astype(kind), [(0, slots - stack.shape[0]), (0, rank - stack.shape[1]), (0, 0)])


def _added(y: mx.array, z: mx.array, b: mx.array, scale: float) -> mx.array:
    """y + scale z b, in one operation where the types agree."""
    if z.dtype == y.dtype:
        return mx.addmm(y, z, b, alpha=scale)
    return y + (scale * (z @ b)).astype(y.dtype)


@attrs.define(eq=False)
class _Loaded:
    """An adapter in its slot. `users` counts rows."""

    record: AdapterRecord
    users: int = 0
    used_at: int = 0


class Adapters:
    """All methods belong to the engine's thread; `acquire` between steps."""

    def __init__(self, model: Any, find: FindAdapter, capacity: int) -> None:
        """`find` gives the record of a name or raises; of more than `capacity` adapters, unused ones leave."""
        self._modules: dict[str, Any] = dict(model.named_modules())
        self._find = find
        self._capacity = capacity
        self._selection = _Selection()
        self._stacks: dict[str, _Stacks] = {}
        self._slots: list[_Loaded | None] = [None]
        self._shape = (1, 1)
        self._kind: mx.Dtype | None = None
        self._chosen: list[int] = []
        self._uses = 0

    def acquire(self, name: str) -> int:
        """The slot of an adapter for one row more, loaded if need be; slot 0 for no name.

        Raises ModelNotFound or ModelLoadFailed when it cannot be used with this model; then nothing has changed.
        """
        if not name:
            return NONE
        record = self._find(name)
        slot = self._slot_of(record)
        if slot is None:
            slot = self._load(record)
        loaded = self._slots[slot]
        assert loaded is not None
        self._uses += 1
        loaded.users, loaded.used_at = loaded.users + 1, self._uses
        return slot

    def release(self, slot: int) -> None:
        """A row is gone."""
        loaded = self._slots[slot]
        if loaded is not None:
            loaded.users -= 1

    def identity(self, slot: int) -> str:
        """What tells one adapter's cached prefixes from another's; empty for none."""
        loaded = self._slots[slot]
        return "" if loaded is None else loaded.record.fingerprint

    def select(self, slots: Sequence[int]) -> None:
        """The slot of each row of the forward passes that are built from now on."""
        chosen = list(slots)
        if chosen == self._chosen:
            return
        self._chosen = chosen
        first = chosen[0] if chosen else NONE
        if all(slot == first for slot in chosen):
            self._selection.slot, self._selection.scale, self._selection.shares = first, self._scale(first), None
            return
        count, rank = self._shape
        scales = [[self._scale(slot) if slot == own else 0.0 for slot in range(count)] for own in chosen]
        self._selection.slot = None
        self._selection.shares = mx.repeat(mx.array(scales, dtype=self._kind), rank, axis=1)[:, None]

    def _scale(self, slot: int) -> float:
        loaded = self._slots[slot]
        return 0.0 if loaded is None else loaded.record.scale

    @property
    def names(self) -> list[str]:
        """Those that are loaded."""
        return [loaded.record.name for loaded in self._slots if loaded is not None]

    def _slot_of(self, record: AdapterRecord) -> int | None:
        for slot, loaded in enumerate(self._slots):
            if loaded is not None and loaded.record.fingerprint == record.fingerprint:
                return slot
        return None

    def _load(self, record: AdapterRecord) -> int:
        layers = {name: self._checked(record, name, adapted) for name, adapted in record.layers.items()}
        try:
            arrays: Any = mx.load(str(record.weights))
            found = {name: _matrices(record, adapted, arrays) for name, adapted in record.layers.items()}
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise ModelLoadFailed(f"the adapter {record.name} cannot be read: {error}", model=record.base) from error
        slot = self._free_slot()
        for name, module in layers.items():
            if name not in self._stacks:
                self._stacks[name] = _Stacks(self._selection, record.layers[name])
                _adapt(module, self._stacks[name])
        kinds = [matrix.dtype for matrices in found.values() for matrix in matrices]
        for kind in kinds:
            self._kind = kind if self._kind is None else mx.result_type(mx.array(0, kind), mx.array(0, self._kind))
        self._shape = (len(self._slots), max(self._shape[1], record.rank))
        assert self._kind is not None
        views = []
        for name, stacks in self._stacks.items():
            stacks.put(slot, self._shape, self._kind, found.get(name))
            views += stacks.finish()
        mx.async_eval(views)  # type: ignore[no-untyped-call]
        self._slots[slot] = _Loaded(record)
        self._chosen = []
        return slot

    def _free_slot(self) -> int:
        """A new slot, or that of the adapter nobody has used for the longest time."""
        unused = [(each.used_at, slot) for slot, each in enumerate(self._slots) if each is not None and not each.users]
        if len(self._slots) <= self._capacity or not unused:
            self._slots.append(None)
            return len(self._slots) - 1
        return min(unused)[1]

    def _checked(self, record: AdapterRecord, name: str, adapted: AdaptedLayer) -> Any:
        module = self._modules.get(name)
        if not isinstance(module, _nn.Linear | _nn.QuantizedLinear):
            kind = "no such layer" if module is None else f"it is a {type(module).__name__}, not a linear layer"
            raise ModelLoadFailed(
                f"the adapter {record.name} is not for {record.base}: {name}: {kind}", model=record.base
            )
        inputs, outputs = inputs_of(module), outputs_of(module)
        if (inputs, outputs) != (adapted.inputs, adapted.outputs):
            raise ModelLoadFailed(
                f"the adapter {record.name} is not for {record.base}: its {name} is {inputs} to {outputs} and the "
                f"adapter's {adapted.inputs} to {adapted.outputs}",
                model=record.base,
            )
        return module


def _matrices(record: AdapterRecord, adapted: AdaptedLayer, arrays: dict[str, mx.array]) -> tuple[mx.array, mx.array]:
    """A [rank, in] and B [rank, out]; mlx-lm stores A the other way round, PEFT B."""
    a, b = arrays[adapted.a], arrays[adapted.b]
    return (a.T, b) if record.form == "mlx-lm" else (a, b.T)


class _Adapted:
    """What an adapted layer puts before its own class."""

    adapter_stacks: _Stacks

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = super().__call__(x)  # type: ignore[misc]
        stacks = self.adapter_stacks
        return stacks.change(x, y) if stacks.is_needed else y


_CLASSES: dict[type, type] = {}


def _adapt(module: Any, stacks: _Stacks) -> None:
    kind = type(module)
    if kind not in _CLASSES:
        _CLASSES[kind] = type(f"Adapted{kind.__name__}", (_Adapted, kind), {})
    module.__class__ = _CLASSES[kind]
    module.adapter_stacks = stacks
