"""Monotonic time as a protocol, so that policies and loops can be driven by a hand-moved clock in tests."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Returns seconds of a monotonic clock that all processes of one machine share."""

monotonic: Clock = time.monotonic
