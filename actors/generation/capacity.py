"""How much memory this machine gives an engine."""

from __future__ import annotations

import os
from pathlib import Path

from mlx_serving.config.schema import Generation

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def machine_bytes() -> int:
    """Memory of the machine, or of the container this process runs in if that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = _CGROUP_LIMIT.read_text(encoding="ascii").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def kv_budget(settings: Generation, weight_bytes: int, memory_bytes: int) -> int:
    """Bytes for keys and values: as configured, or what `memory_fraction` leaves beside the weights."""
    if settings.kv_bytes:
        return settings.kv_bytes
    return max(0, int(settings.memory_fraction * memory_bytes) - weight_bytes)
