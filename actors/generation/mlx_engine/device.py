"""What MLX computes on."""

from __future__ import annotations

from typing import Literal

import mlx.core as mx

BackEnd = Literal["cpu", "metal", "cuda"]


def is_cpu() -> bool:
    """Whether MLX computes on the CPU back end."""
    return bool(mx.default_device().type == mx.DeviceType.cpu)


def back_end() -> BackEnd:
    """Where MLX computes."""
    if is_cpu():
        return "cpu"
    return "cuda" if mx.cuda.is_available() else "metal"
