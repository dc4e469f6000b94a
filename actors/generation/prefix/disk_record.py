"""What the disk tier keeps for some tokens, as bytes, and its form as a file: safetensors. Pure but for the file.

A file is written under another name, forced to the disk and renamed, so that one with its final name is whole. It is
read in parts, by as many threads as there are.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np

PARTIAL = ".partial"
SUFFIX = ".safetensors"
PART_BYTES = 4 << 20
"""What a thread reads and checks at a time. Whole pages."""
_PAGE = 4096
_HEADERS = 32
"""As many are kept as they were parsed, which holds up all threads that read."""


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
    """A file in its folder: name, size and `Checksum` of all its bytes."""

    name: str
    size: int
    checksum: int


@attrs.frozen
class Form:
    """Of a tensor in a file: its type and shape, and where its bytes begin and end among those of all tensors."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@attrs.frozen(eq=False)
class Content:
    """What a file holds: tensors, whose bytes follow each other in `data`, and the note."""

    forms: tuple[Form, ...]
    note: str
    data: memoryview

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(Tensor(each.dtype, each.shape, self.data[each.begin : each.end]) for each in self.forms)


def fresh_memory(nbytes: int) -> memoryview:
    return memoryview(bytearray(nbytes))


class BrokenFile(Exception):
    """The file is not what was written."""


class Checksum:
    """The CRC-32 of the sums of pages: of each its 64-bit words, of the last one with zeros behind.

    It finds pages that were changed, lost, or come in another order, in a tenth of the time that a CRC of all bytes
    takes. Pages are summed apart from each other, by any thread.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._value = 0

    def add(self, data: memoryview) -> None:
        """What comes next, of any length."""
        if self._rest:
            missing = _PAGE - len(self._rest)
            self._rest, data = self._rest + data[:missing], data[missing:]
            if len(self._rest) < _PAGE:
                return
            self._value = zlib.crc32(_page_sums(memoryview(self._rest)), self._value)
        whole = len(data) - len(data) % _PAGE
        self._value = zlib.crc32(_page_sums(data[:whole]), self._value)
        self._rest = bytes(data[whole:])

    @property
    def value(self) -> int:
        """Of what was added."""
        return zlib.crc32(_page_sums(memoryview(self._rest)), self._value)


def _page_sums(data: memoryview) -> bytes:
    """8 bytes for each page."""
    if len(data) % _PAGE:
        whole = len(data) - len(data) % _PAGE
        last = bytes(data[whole:]).ljust(_PAGE, b"\0")
        return _page_sums(data[:whole]) + _page_sums(memoryview(last))
    words = np.frombuffer(data, dtype="<u8").reshape(-1, _PAGE // 8)
    sums: bytes = words.sum(axis=1, dtype="<u8").tobytes()
    return sums


def write_record(folder: Path, record: Record) -> Stored:
    """Write the tensors as a new file of `folder`. Raises OSError, and leaves nothing then."""
    header = _header(record)
    name = secrets.token_hex(16) + SUFFIX
    partial = folder / (name + PARTIAL)
    checksum = Checksum()
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            for data in (memoryview(header), *(tensor.data for tensor in record.tensors)):
                file.write(data)
                checksum.add(data)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(folder / name)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    return Stored(name, len(header) + record.nbytes, checksum.value)


class Reading:
    """A file on its way into memory. Its parts are read in any order, by any thread."""

    def __init__(self, folder: Path, stored: Stored, memory: Callable[[int], memoryview] = fresh_memory) -> None:
        """Into `memory` of its size. Raises BrokenFile when it does not have that, OSError when it is gone."""
        self._stored = stored
        self._file = os.open(folder / stored.name, os.O_RDONLY)
        try:
            if os.fstat(self._file).st_size != stored.size:
                raise BrokenFile(f"{stored.name} does not have the size it was written with")
            self._content = memory(stored.size)
        except BaseException:
            os.close(self._file)
            raise
        self._sums = [b""] * len(range(0, stored.size, PART_BYTES))

    @property
    def parts(self) -> range:
        return range(len(self._sums))

    def read(self, part: int) -> None:
        """Raises OSError, and BrokenFile when it ends too soon."""
        begin = part * PART_BYTES
        wanted = self._content[begin : begin + PART_BYTES]
        filled = 0
        while filled < len(wanted):
            count = os.preadv(self._file, [wanted[filled:]], begin + filled)
            if not count:
                raise BrokenFile(f"{self._stored.name} became shorter")
            filled += count
        self._sums[part] = _page_sums(wanted)

    def content(self) -> Content:
        """Once all parts are read. Raises BrokenFile when a byte is not as written."""
        if zlib.crc32(b"".join(self._sums)) != self._stored.checksum:
            raise BrokenFile(f"{self._stored.name} was changed after it was written")
        return _parsed(self._content)

    def close(self) -> None:
        """When nobody reads any more."""
        os.close(self._file)


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
    forms, note = _forms(bytes(content[8 : 8 + length]))
    return Content(forms, note, content[8 + length :])


@functools.lru_cache(_HEADERS)
def _forms(text: bytes) -> tuple[tuple[Form, ...], str]:
    """By the header's JSON text, which is the same in all blocks of a model that have as many tokens."""
    entries = json.loads(text)
    note = entries.pop("__metadata__")["note"]
    forms = (
        Form(entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"]) for _, entry in sorted(entries.items())
    )
    return tuple(forms), note
