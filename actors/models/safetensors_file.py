"""Reads and writes the safetensors container: an 8 byte length, a JSON header, then the tensors' bytes.

Reading stops at the header, so that describing a model costs no more than its first kilobytes. Writing takes
the tensors piece by piece, so that a model never has to fit in memory.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from operator import index, itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from mlx_serving.actors.errors import ModelLoadFailed

ITEM_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4,
    "F6_E2M3": 6, "F6_E3M2": 6,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
_MAX_HEADER = 100_000_000
_SAMPLE_BYTES = 256


@attrs.frozen
class StoredTensor:
    """One tensor of a file: its name, safetensors dtype (F16, BF16, U32, ...) and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * ITEM_BITS[self.dtype] // 8


def read_header(path: Path) -> tuple[list[StoredTensor], bytes]:
    """The tensors of a file and the header's own bytes; ModelLoadFailed says what is wrong with the file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER):
                raise _broken(path, "it is cut short or is not a safetensors file")
            raw = file.read(length)
    except OSError as error:
        raise _broken(path, str(error)) from error
    return _tensors(path, raw, size - 8 - length), raw


def read_samples(path: Path, tensors: Iterable[StoredTensor], header_bytes: int) -> Iterator[bytes]:
    """Some bytes from the middle of each tensor; as `read_header` lists them. May raise ModelLoadFailed."""
    position = 8 + header_bytes
    try:
        with path.open("rb", buffering=0) as file:
            for tensor in tensors:
                file.seek(position + tensor.bytes // 2)
                yield file.read(min(_SAMPLE_BYTES, tensor.bytes - tensor.bytes // 2))
                position += tensor.bytes
    except OSError as error:
        raise _broken(path, str(error)) from error


def _broken(path: Path, what: str) -> ModelLoadFailed:
    return ModelLoadFailed(f"{path} cannot be used: {what}. Remove it and pull, import or add it again")


def _tensors(path: Path, raw: bytes, data_bytes: int) -> list[StoredTensor]:
    """Tensors must fill the data without gap or overlap, so that a truncated file never passes."""
    try:
        header = json.loads(raw)
        listed = [
            (entry["data_offsets"], StoredTensor(name, entry["dtype"], tuple(map(index, entry["shape"]))))
            for name, entry in header.items()
            if name != "__metadata__"
        ]
        entries = sorted(listed, key=itemgetter(0))
        position = 0
        for (begin, end), tensor in entries:
            if begin != position or end - begin != tensor.bytes:
                raise _broken(path, f"the bytes of {tensor.name} do not match its shape")
            position = end
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _broken(path, f"its header is not valid ({error})") from error
    if position != data_bytes:
        raise _broken(path, f"it holds {data_bytes} bytes of weights where its header lists {position}")
    return [tensor for _, tensor in entries]


class SafetensorsWriter:
    """Writes the tensors announced at the start, each in one or more pieces, in any order among them."""

    def __init__(self, path: Path, tensors: Iterable[StoredTensor]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
        self._next: dict[str, int] = {}
        self._end: dict[str, int] = {}
        position = 0
        for tensor in tensors:
            end = position + tensor.bytes
            header[tensor.name] = {
                "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [position, end]
            }  # fmt: skip
            self._next[tensor.name], self._end[tensor.name] = position, end
            position = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._data_start = 8 + len(text)
        self._file = path.open("wb")
        self._file.write(struct.pack("<Q", len(text)) + text)

    def write(self, name: str, piece: NDArray[Any]) -> None:
        """The next bytes of tensor `name`, little-endian and contiguous."""
        self._file.seek(self._data_start + self._next[name])
        self._file.write(np.ascontiguousarray(piece).data)
        self._next[name] += piece.nbytes

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                self._check_complete()
                self._file.flush()
                os.fsync(self._file.fileno())

    def _check_complete(self) -> None:
        short = [name for name, end in self._end.items() if self._next[name] != end]
        if short:
            raise ValueError(f"{short[0]} was not written completely")


def write_index(folder: Path, shards: Mapping[str, Iterable[StoredTensor]]) -> None:
    """The index that says which of several files holds which tensor."""
    where = {tensor.name: file for file, tensors in shards.items() for tensor in tensors}
    total = sum(tensor.bytes for tensors in shards.values() for tensor in tensors)
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=1)
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
