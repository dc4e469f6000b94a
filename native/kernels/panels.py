"""Quantised weights in panels of 32 rows, which is how the CPU's products of bytes read them: without a gap, in order.

A layer in panels has three axes where MLX's has two: whoever reads its weight for itself fails, and is never wrong.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_serving.native.kernels import blocks, layers
from mlx_serving.native.kernels.operations import OPERATIONS
from mlx_serving.native.kernels.pure import PANEL_BITS, PANEL_ROWS, digits_from_panels, from_panels

FAMILIES = (
    *blocks.FAMILIES,
    *(
        f"mlx_lm.models.{name}"
        for name in ("cohere2", "gemma2", "gemma3_text", "granite", "olmo2", "phi3", "qwen3", "smollm3", "starcoder2")
    ),
)
"""Modules whose models ask their linear layers to compute, and never for their weights."""

_KINDS = (layers.NativeQuantizedLinear, layers.NativeQuantizedEmbedding)


def lay_out(model: Any) -> None:
    """Put the layers of ours in `model` into panels where this processor and the model's family allow."""
    if not OPERATIONS.takes_panels() or type(model).__module__ not in FAMILIES:
        return
    for module in model.modules():
        if not _suits(module, "lm_head" in model):
            continue
        module.weight = OPERATIONS.digits_to_panels(module.weight, module.bits)
        module.scales, module.biases = OPERATIONS.to_panels(module.scales), OPERATIONS.to_panels(module.biases)
        # One layer at a time, so that no more than one is in memory twice.
        mx.eval(module.weight, module.scales, module.biases)


def take_back(module: Any) -> None:
    """Give a layer MLX's own layout again."""
    if type(module) in _KINDS and module.weight.ndim > 2:
        module.weight = digits_from_panels(module.weight, module.bits)
        module.scales, module.biases = from_panels(module.scales), from_panels(module.biases)


def _suits(module: Any, has_head: bool) -> bool:
    """Embeddings only where they are the output layer too: looking tokens up is easier in MLX's layout."""
    kind = type(module)
    if kind is not layers.NativeQuantizedLinear and (kind is not layers.NativeQuantizedEmbedding or has_head):
        return False
    return module.bits in PANEL_BITS and module.weight.shape[0] % PANEL_ROWS == 0
