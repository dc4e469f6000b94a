"""What MLX computes on."""

from __future__ import annotations

import mlx.core as mx

from mlx_serving.actors.generation.mlx_engine.device import is_cpu
from tools.bench.header import machine


def device() -> str:
    """The accelerator's name, or the processor's with its cores."""
    if is_cpu():
        about = machine()
        return f"{about['cpu']}, {about['cores']} cores"
    return str(mx.device_info().get("device_name", mx.default_device()))
