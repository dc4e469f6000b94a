"""Waiting for facts that no event announces."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_NEVER = threading.Event()


def until(fact: Callable[[], T], *, seconds: float = 60.0, what: str = "the fact") -> T:
    """The first truthy value of `fact`; AssertionError when it has not come true within `seconds`."""
    end = time.monotonic() + seconds
    while not (value := fact()):
        assert time.monotonic() < end, f"{what} did not come true within {seconds:g} s"
        _NEVER.wait(0.02)
    return value
