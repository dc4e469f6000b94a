"""How often and how much Python allocates while something runs, counted at its allocators."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import attrs


@attrs.frozen
class Allocations:
    """Calls of the allocators, and the bytes they asked for."""

    calls: int
    bytes: int


def allocations(run: Callable[[], object]) -> Allocations | None:
    """Of one call. None where there is no C compiler or no header of Python's."""
    counter = _counter()
    if counter is None:
        return None
    calls, size = ctypes.c_ulonglong(), ctypes.c_ulonglong()
    counter.start()
    try:
        run()
    finally:
        counter.stop(ctypes.byref(calls), ctypes.byref(size))
    return Allocations(calls.value, size.value)


@cache
def _counter() -> ctypes.PyDLL | None:
    source = Path(__file__).with_suffix(".c")
    command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O2", "-I", sysconfig.get_paths()["include"]]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "allocations.so"
        try:
            subprocess.run([*command, str(source), "-o", str(library)], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return ctypes.PyDLL(str(library))
