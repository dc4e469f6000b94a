"""Reads GGUF files: key-value fields and the table of tensors, each checked against the bytes that are there.

The layout is ggml's: magic, version, counts, fields, tensor table, then aligned tensor data; all
little-endian (github.com/ggml-org/ggml, docs/gguf.md). Every count is spent from the file's own bytes, so a
hostile one runs into the end of the file instead of allocating. Whatever is wrong is ModelLoadFailed with the
file's name.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import attrs
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from mlx_serving.actors.errors import ModelLoadFailed
from mlx_serving.actors.models.gguf_fields import Fields

_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"
}  # fmt: skip
_MAX_DIMENSIONS = 4


@attrs.frozen
class GGUFTensor:
    """Where one tensor lies. `shape` has the outermost dimension first; a row is the last dimension."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    bytes: int

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        return self.shape[-1]


class GGUFFile:
    """An open GGUF file; a context manager, since tensor bytes are views of the mapped file."""

    def __init__(self, path: Path) -> None:
        """ModelLoadFailed if the file is no GGUF, is cut short, or lies about its sizes."""
        self.path = path
        try:
            with path.open("rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ModelLoadFailed(f"{path} cannot be read: {error}") from error
        try:
            self._parse(_Cursor(self._bytes, path))
        except BaseException:
            self._bytes.close()
            raise

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bytes.close()

    def raw(self, tensor: GGUFTensor, start: int, stop: int) -> NDArray[np.uint8]:
        """A copy of the bytes of rows `start` to `stop`: uint8 [rows, bytes of a row]."""
        width = tensor.bytes // tensor.rows
        first = tensor.offset + start * width
        data = self._bytes[first : first + (stop - start) * width]
        return np.frombuffer(data, np.uint8).reshape(stop - start, width)

    def _parse(self, cursor: _Cursor) -> None:
        version, tensors, fields = _preamble(cursor)
        self.version = version
        values: dict[str, Any] = {}
        for _ in range(fields):
            key = cursor.string()
            if key in values:
                raise cursor.wrong(f"the field {key} stands there twice")
            values[key] = cursor.value(cursor.scalar("<I"))
        self.fields = Fields(values, self.path)
        self.tensors: Mapping[str, GGUFTensor] = _tensor_table(cursor, tensors, self.fields)


class _Cursor:
    """A position in the file that never leaves it."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data = data
        self.path = path
        self.position = 0

    def wrong(self, what: str) -> ModelLoadFailed:
        return ModelLoadFailed(f"{self.path} is not a usable GGUF file: {what}")

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise self.wrong(f"it ends after {len(self.data)} bytes where more must follow; download it again")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def scalar(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def string(self) -> str:
        taken = self.take(self.scalar("<Q"))
        try:
            return taken.decode()
        except UnicodeDecodeError as error:
            raise self.wrong(f"text before byte {self.position} is not UTF-8") from error

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array(self.scalar("<I"), self.scalar("<Q"))
        if kind not in _SCALARS:
            raise self.wrong(f"unknown type {kind} of a field before byte {self.position}")
        return self.scalar(_SCALARS[kind])

    def _array(self, kind: int, count: int) -> list[Any]:
        if kind == _STRING:
            return [self.string() for _ in range(count)]
        if kind not in _SCALARS:
            raise self.wrong(f"unknown type {kind} of an array before byte {self.position}")
        form = np.dtype(_SCALARS[kind])
        items: list[Any] = np.frombuffer(self.take(count * form.itemsize), form).tolist()
        return items


def _preamble(cursor: _Cursor) -> tuple[int, int, int]:
    """Version, number of tensors, number of fields."""
    if cursor.take(4) != b"GGUF":
        raise cursor.wrong("it does not begin with GGUF")
    version = cursor.scalar("<I")
    if version not in (2, 3):
        raise cursor.wrong(f"version {version} is not 2 or 3 (little-endian)")
    return version, cursor.scalar("<Q"), cursor.scalar("<Q")


def _tensor_table(cursor: _Cursor, count: int, fields: Fields) -> dict[str, GGUFTensor]:
    entries = [_tensor_entry(cursor) for _ in range(count)]
    alignment = fields.integer("general.alignment", 32)
    if alignment < 1 or alignment & (alignment - 1) or alignment % 8:
        raise cursor.wrong(f"general.alignment is {alignment}, not a power of two from 8")
    start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, GGUFTensor] = {}
    for entry in entries:
        tensor = attrs.evolve(entry, offset=start + entry.offset)
        if tensor.name in tensors:
            raise cursor.wrong(f"the tensor {tensor.name} stands there twice")
        if entry.offset % alignment:
            raise cursor.wrong(f"the tensor {tensor.name} is not aligned to {alignment} bytes")
        if tensor.offset + tensor.bytes > len(cursor.data):
            raise cursor.wrong(
                f"the tensor {tensor.name} ends at byte {tensor.offset + tensor.bytes} of a file of "
                f"{len(cursor.data)} bytes; it was cut short, download it again"
            )
        tensors[tensor.name] = tensor
    return tensors


def _tensor_entry(cursor: _Cursor) -> GGUFTensor:
    """One row of the table; its offset still counts from the start of the data."""
    name = cursor.string()
    dimensions = cursor.scalar("<I")
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise cursor.wrong(f"the tensor {name} has {dimensions} dimensions")
    shape = tuple(reversed([cursor.scalar("<Q") for _ in range(dimensions)]))
    number = cursor.scalar("<I")
    try:
        kind = GGMLQuantizationType(number)
    except ValueError as error:
        raise cursor.wrong(f"the tensor {name} has the unknown type {number}") from error
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if 0 in shape or shape[-1] % block:
        raise cursor.wrong(f"the tensor {name} has the shape {list(shape)}, not rows of {block} x n {kind.name}")
    return GGUFTensor(name, shape, kind, cursor.scalar("<Q"), math.prod(shape) // block * block_bytes)
