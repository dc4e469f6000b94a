"""The C library's heap: giving back to the system what MLX's CPU back end has freed."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


def trim() -> bool:
    """Return free pages to the system; False where the C library has no such call (it is glibc's)."""
    call = _malloc_trim()
    return call is not None and bool(call(0))


@cache
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
