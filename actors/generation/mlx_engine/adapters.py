"""LoRA adapters beside one model: rows with different ones, and with none, share a forward pass.

For every linear layer that some adapter changes, the matrices of all of them stand in two stacks, A [slots, in, rank]
and B [slots, rank, out], padded with zeros to the largest rank; slot 0 is all zeros and stands for no adapter. `select`
says which slot each row of the next forward passes takes; while that is 0 for all of them, a layer does what it did
before. The sum is mlx-lm's: y + (scale (x A) B) in the type of x (Hu et al. 2021, "LoRA").

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
    """`slot` of all rows alike, or, where that is None, `slots` [rows]."""

    slot: int | None = NONE
    slots: mx.array | None = None


class _Stacks:
    """The matrices of one layer: `a` [slots, in, rank], `b` [slots, rank, out], `scales` [slots]."""

    def __init__(self, selection: _Selection, adapted: AdaptedLayer) -> None:
        self._selection = selection
        self.a = mx.zeros((1, adapted.inputs, 1))
        self.b = mx.zeros((1, 1, adapted.outputs))
        self.scales = mx.zeros(1)

    def put(self, slot: int, slots: int, matrices: tuple[mx.array, mx.array] | None, scale: float) -> None:
        """Fill one of `slots` slots; without matrices it changes nothing in this layer."""
        rank = self.a.shape[2]
        if matrices is not None:
            a, b = matrices
            rank = max(rank, a.shape[1])
            kind = a.dtype if self.a.shape[0] == 1 else mx.result_type(a, self.a)
            self._resize(slots, rank, kind)
            self.a[slot] = mx.pad(a.astype(kind), [(0, 0), (0, rank - a.shape[1])])
            self.b[slot] = mx.pad(b.astype(kind), [(0, rank - b.shape[0]), (0, 0)])
        else:
            self._resize(slots, rank, self.a.dtype)
            self.a[slot], self.b[slot] = 0, 0
        self.scales[slot] = scale

    def _resize(self, slots: int, rank: int, kind: mx.Dtype) -> None:
        more, wider = slots - self.a.shape[0], rank - self.a.shape[2]
        self.a = mx.pad(self.a.astype(kind), [(0, more), (0, 0), (0, wider)])
        self.b = mx.pad(self.b.astype(kind), [(0, more), (0, wider), (0, 0)])
        self.scales = mx.pad(self.scales, [(0, more)])

    def change(self, x: mx.array, y: mx.array) -> mx.array:
        """`y`, the layer's output for `x` [rows, tokens, in] or [rows, in], with the selected adapters' share."""
        slot, slots = self._selection.slot, self._selection.slots
        if slot is not None:
            return y + (self.scales[slot] * ((x @ self.a[slot]) @ self.b[slot])).astype(x.dtype)
        assert slots is not None
        if x.shape[0] != slots.shape[0]:
            raise GenerationFailed(f"adapters were chosen for {slots.shape[0]} rows and there are {x.shape[0]}")
        tokens = x if x.ndim == 3 else x[:, None, :]
        share = (tokens @ self.a[slots]) @ self.b[slots] * self.scales[slots][:, None, None]
        return y + share.astype(x.dtype).reshape(y.shape)

    @property
    def is_needed(self) -> bool:
        return self._selection.slot != NONE


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
        first = slots[0] if slots else NONE
        if all(slot == first for slot in slots):
            self._selection.slot, self._selection.slots = first, None
        else:
            self._selection.slot, self._selection.slots = None, mx.array(list(slots), dtype=mx.uint32)

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
        for name, stacks in self._stacks.items():
            scale = record.layers[name].scale if name in found else 0.0
            stacks.put(slot, len(self._slots), found.get(name), scale)
        started = [(stacks.a, stacks.b, stacks.scales) for stacks in self._stacks.values()]
        mx.async_eval(started)  # type: ignore[no-untyped-call]
        self._slots[slot] = _Loaded(record)
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
        outputs, inputs = module.weight.shape
        if isinstance(module, _nn.QuantizedLinear):
            inputs = inputs * 32 // module.bits
        if (inputs, outputs) != (adapted.inputs, adapted.outputs):
            raise ModelLoadFailed(
                f"the adapter {record.name} is not for {record.base}: its {name} is {inputs} to {outputs} and the "
                f"adapter's {adapted.inputs} to {adapted.outputs}",
                model=record.base,
            )
        return module


def _matrices(record: AdapterRecord, adapted: AdaptedLayer, arrays: dict[str, mx.array]) -> tuple[mx.array, mx.array]:
    """A [in, rank] and B [rank, out]; PEFT stores both the other way round."""
    a, b = arrays[adapted.a], arrays[adapted.b]
    return (a, b) if record.form == "mlx-lm" else (a.T, b.T)


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
