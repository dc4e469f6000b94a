"""What the disk tier keeps for some tokens, as bytes, and its form as a file: safetensors. Pure but for the file.

A file is written under another name, forced to the disk and renamed, so that one with its final name is whole.
"""

from __future__ import annotations

import json
import os
import secrets
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

PARTIAL = ".partial"
SUFFIX = ".safetensors"


@attrs.frozen(eq=False)
class Tensor:
    """One array: its safetensors type name, its shape, its bytes in row-major order."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


@attrs.frozen(eq=False)
class Record:
    """The tensors of tokens [start, stop) of a sequence, whose packed ids are `tokens`.

    A block's `key` names the prefix up to `stop` and its `parent` the one up to `start` (`keys.py`). A state stands for
    all of its prefix: it has no `tokens`. `note` is for whoever made the tensors.
    """

    key: bytes
    parent: bytes
    start: int
    stop: int
    tokens: bytes
    tensors: tuple[Tensor, ...]
    note: str = ""

    @property
    def nbytes(self) -> int:
        return sum(tensor.data.nbytes for tensor in self.tensors)

    @property
    def is_state(self) -> bool:
        return not self.tokens


@attrs.frozen
class Stored:
    """A file in its folder: name, size and CRC-32 of all its bytes."""

    name: str
    size: int
    checksum: int


@attrs.frozen(eq=False)
class Content:
    """What a file holds: its tensors, whose bytes follow each other in `data`, and the note."""

    tensors: tuple[Tensor, ...]
    note: str
    data: memoryview


def fresh_memory(nbytes: int) -> memoryview:
    return memoryview(bytearray(nbytes))


class BrokenFile(Exception):
    """The file is not what was written."""


def write_record(folder: Path, record: Record) -> Stored:
    """Write the tensors as a new file of `folder`. Raises OSError, and leaves nothing then."""
    header = _header(record)
    name = secrets.token_hex(16) + SUFFIX
    partial = folder / (name + PARTIAL)
    checksum = zlib.crc32(header)
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(header)
            for tensor in record.tensors:
                file.write(tensor.data)
                checksum = zlib.crc32(tensor.data, checksum)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(folder / name)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    return Stored(name, len(header) + record.nbytes, checksum)


def read_content(folder: Path, stored: Stored, memory: Callable[[int], memoryview] = fresh_memory) -> Content:
    """What a file holds, read into `memory` of its size. Raises BrokenFile when a byte of it is not as written, OSError
    when it is gone."""
    with (folder / stored.name).open("rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size != stored.size:
            raise BrokenFile(f"{stored.name} does not have the size it was written with")
        content, filled = memory(stored.size), 0
        while filled < stored.size and (count := file.readinto(content[filled:])):
            filled += count
    if filled < stored.size or zlib.crc32(content) != stored.checksum:
        raise BrokenFile(f"{stored.name} was changed after it was written")
    return _parsed(content)


def _header(record: Record) -> bytes:
    """8 bytes with the length of the JSON text, and that text, padded to a multiple of 8."""
    entries: dict[str, Any] = {"__metadata__": {"format": "mlx", "note": record.note}}
    offset = 0
    for place, tensor in enumerate(record.tensors):
        end = offset + tensor.data.nbytes
        entries[f"{place:05}"] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _parsed(content: memoryview) -> Content:
    length = int.from_bytes(content[:8], "little")
    entries = json.loads(bytes(content[8 : 8 + length]))
    note = entries.pop("__metadata__")["note"]
    data = content[8 + length :]
    tensors = (
        Tensor(entry["dtype"], tuple(entry["shape"]), data[slice(*entry["data_offsets"])])
        for _, entry in sorted(entries.items())
    )
    return Content(tuple(tensors), note, data)
