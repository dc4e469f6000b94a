"""Turns the tensors of a GGUF file into MLX safetensors, a few rows at a time.

Each tensor is repacked as it is (gguf_repack), requantised by MLX to a chosen width, or kept as numbers of
the model's floating point type. What is written is planned before the first byte, so the size on disk is
known in advance.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from mlx_serving.actors.models.gguf_architectures import Family, Slot
from mlx_serving.actors.models.gguf_file import GGUFFile, GGUFTensor
from mlx_serving.actors.models.gguf_repack import GROUP_SIZE, REPACKED, pack
from mlx_serving.actors.models.progress import Progress
from mlx_serving.actors.models.record import Quantization
from mlx_serving.actors.models.safetensors_file import SafetensorsWriter, StoredTensor, write_index

PIECE_ELEMENTS = 1 << 22
"""Weights in memory at a time; as float32 they take 16 MiB."""
SHARD_BYTES = 2 << 30

_FLOATS = {
    GGMLQuantizationType.F32: "F32",
    GGMLQuantizationType.F16: "F16",
    GGMLQuantizationType.BF16: "BF16",
}
_NEAREST_BITS = {"Q6_K": 6, "Q8_1": 8, "Q8_K": 8, "IQ4_NL": 5, "IQ4_XS": 5, "MXFP4": 5, "NVFP4": 5}
"""Width for types that MLX cannot hold as they are: at least the source's own; 4 bits for those below."""


@attrs.frozen
class Conversion:
    """What becomes of one tensor: numbers if without `quantization`, its own codes if `repacked`."""

    source: GGUFTensor
    slot: Slot
    dtype: str
    quantization: Quantization | None = None
    repacked: bool = False

    @property
    def module(self) -> str:
        return self.slot.target.rpartition(".")[0]

    @property
    def outputs(self) -> list[StoredTensor]:
        if self.quantization is None:
            return [StoredTensor(self.slot.target, self.dtype, self.source.shape)]
        rows, columns = self.source.rows, self.source.columns
        groups = (rows, columns // self.quantization.group_size)
        return [
            StoredTensor(f"{self.module}.weight", "U32", (rows, columns * self.quantization.bits // 32)),
            StoredTensor(f"{self.module}.scales", self.dtype, groups),
            StoredTensor(f"{self.module}.biases", self.dtype, groups),
        ]

    @property
    def bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.outputs)


def plan(
    file: GGUFFile, family: Family, slots: Mapping[str, Slot], wanted: Quantization | None, half: bool
) -> list[Conversion]:
    """What to do with each tensor; `wanted` is the width for all weights, None stays close to the file.

    Without `half`, all that would be float16 or bfloat16 is written as float32, which holds it exactly.
    """
    dtype = _float_type(file, family) if half else "F32"
    return [_conversion(file.tensors[name], slot, dtype, wanted) for name, slot in slots.items()]


def _float_type(file: GGUFFile, family: Family) -> str:
    """The type of most weights, or float16 beside quantised ones, as their scales are float16."""
    weights = [tensor for tensor in file.tensors.values() if len(tensor.shape) == 2]
    sizes = {name: sum(t.bytes for t in weights if t.kind is kind) for kind, name in _FLOATS.items()}
    quantized = any(tensor.kind not in _FLOATS for tensor in weights)
    dtype = "F16" if quantized else max(sizes, key=lambda name: sizes[name])
    return "F32" if dtype == "F16" and not family.float16 else dtype


def _conversion(source: GGUFTensor, slot: Slot, dtype: str, wanted: Quantization | None) -> Conversion:
    plain = Conversion(source, slot, dtype)
    if len(source.shape) != 2:
        return plain
    repacking = REPACKED.get(source.kind)
    kept = Quantization(repacking.bits, GROUP_SIZE) if repacking else None
    if kept is not None and wanted in (None, kept):
        return attrs.evolve(plain, quantization=kept, repacked=True)
    if wanted is None and source.kind not in _FLOATS:
        wanted = Quantization(_NEAREST_BITS.get(source.kind.name, 4), GROUP_SIZE)
    if wanted is None or source.columns % wanted.group_size:
        return plain
    return attrs.evolve(plain, quantization=wanted)


def write_weights(file: GGUFFile, conversions: Iterable[Conversion], folder: Path, progress: Progress) -> None:
    """Writes model.safetensors, or numbered shards of up to SHARD_BYTES and their index."""
    shards = _shards(conversions)
    names = _shard_names(len(shards))
    total = sum(conversion.bytes for shard in shards for conversion in shard)
    done = 0
    for name, shard in zip(names, shards, strict=True):
        with SafetensorsWriter(folder / name, _outputs(shard)) as writer:
            for conversion in shard:
                _convert(file, conversion, writer)
                done += conversion.bytes
                progress("convert", done, total)
    if len(shards) > 1:
        write_index(folder, {name: _outputs(shard) for name, shard in zip(names, shards, strict=True)})


def _outputs(conversions: Iterable[Conversion]) -> list[StoredTensor]:
    return [tensor for conversion in conversions for tensor in conversion.outputs]


def _shards(conversions: Iterable[Conversion]) -> list[list[Conversion]]:
    shards: list[list[Conversion]] = [[]]
    size = 0
    for conversion in conversions:
        if shards[-1] and size + conversion.bytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(conversion)
        size += conversion.bytes
    return shards


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def _convert(file: GGUFFile, conversion: Conversion, writer: SafetensorsWriter) -> None:
    names = [tensor.name for tensor in conversion.outputs]
    for raw in _pieces(file, conversion):
        with np.errstate(all="ignore"):  # damaged numbers are found where they would be stored
            pieces = _converted(file, conversion, raw)
        for name, piece in zip(names, pieces, strict=True):
            writer.write(name, piece)


def _pieces(file: GGUFFile, conversion: Conversion) -> Iterator[NDArray[np.uint8]]:
    source, heads = conversion.source, conversion.slot.interleaved_heads
    if heads:
        yield _uninterleaved(_all_rows(file, source), heads)
        return
    step = max(1, PIECE_ELEMENTS // source.columns)
    for start in range(0, source.rows, step):
        yield file.raw(source, start, min(start + step, source.rows))


def _all_rows(file: GGUFFile, source: GGUFTensor) -> NDArray[np.uint8]:
    """The rows of a q or k projection; a bias counts one row per number."""
    raw = file.raw(source, 0, source.rows)
    return raw if len(source.shape) == 2 else raw.reshape(source.columns, -1)


def _uninterleaved(rows: NDArray[np.uint8], heads: int) -> NDArray[np.uint8]:
    """ggml's rotary embedding turns neighbouring rows of a head, MLX's the first half against the second."""
    halves = rows.reshape(heads, -1, 2, rows.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def _converted(file: GGUFFile, conversion: Conversion, raw: NDArray[np.uint8]) -> list[NDArray[Any]]:
    kind, quantization = conversion.source.kind, conversion.quantization
    if conversion.repacked and quantization is not None:
        groups = REPACKED[kind].unpack(raw)
        floats = [groups.scales, groups.biases]
        pieces = [pack(groups.codes, quantization.bits)]
    else:
        floats = [_dequantized(file, conversion, raw)]
        pieces = []
        if quantization is not None:
            packed, *floats = _quantized(floats[0], quantization)
            pieces = [packed]
    return pieces + [_as_stored(file, conversion, values) for values in floats]


def _dequantized(file: GGUFFile, conversion: Conversion, raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    try:
        values = dequantize(raw, conversion.source.kind).astype(np.float32)
    except NotImplementedError as error:
        name, kind = conversion.source.name, conversion.source.kind.name
        raise file.fields.wrong(f"{name} has the type {kind}, which cannot be dequantised") from error
    return values - np.float32(1) if conversion.slot.subtract_one else values


def _quantized(values: NDArray[np.float32], quantization: Quantization) -> list[NDArray[Any]]:
    """Packed codes, scales and biases by MLX's own rule."""
    import mlx.core as mx

    arrays = mx.quantize(mx.array(values), quantization.group_size, quantization.bits)
    return [np.array(array) for array in arrays]


def _as_stored(file: GGUFFile, conversion: Conversion, values: NDArray[np.floating]) -> NDArray[Any]:
    """Numbers in the stored type's bytes. What is not finite there was damaged, or cannot be told from it."""
    if conversion.dtype == "BF16":
        wide = values.astype("<f4")
        stored, finite = _bfloat16(wide), np.isfinite(wide)
    else:
        stored = values.astype("<f2" if conversion.dtype == "F16" else "<f4")
        finite = np.isfinite(stored)
    if not finite.all():
        raise file.fields.wrong(f"the tensor {conversion.source.name} holds values that are not finite numbers")
    return stored


def _bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounds to nearest, ties to even: numpy has no bfloat16."""
    bits = values.view("<u4").astype(np.uint64)
    rounded = bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))
    return (rounded >> np.uint64(16)).astype("<u2")
