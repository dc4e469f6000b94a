"""How much memory this machine gives an engine."""

from __future__ import annotations

from mlx_serving.config.schema import Generation


def kv_budget(settings: Generation, weight_bytes: int, memory_bytes: int) -> int:
    """Bytes for keys and values: as configured, or what `memory_fraction` leaves beside the weights."""
    if settings.kv_bytes:
        return settings.kv_bytes
    return max(0, int(settings.memory_fraction * memory_bytes) - weight_bytes)
