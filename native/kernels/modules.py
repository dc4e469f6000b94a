"""The table from MLX's modules to ours, and `install`, which swaps them in a loaded model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn

from mlx_serving.native.kernels import blocks, functions, layers, panels
from mlx_serving.native.kernels.operations import choice

_nn: Any = mlx.nn
"""Its modules carry no types."""


def _always(layer: Any) -> bool:
    return True


TABLE: dict[type, tuple[type, Callable[[Any], bool]]] = {
    _nn.QuantizedLinear: (layers.NativeQuantizedLinear, layers.takes_quantized),
    _nn.QuantizedEmbedding: (layers.NativeQuantizedEmbedding, layers.takes_quantized),
    _nn.Linear: (layers.NativeLinear, layers.takes_dense),
    _nn.Embedding: (layers.NativeEmbedding, layers.takes_dense),
    _nn.RMSNorm: (layers.NativeRMSNorm, _always),
    _nn.LayerNorm: (layers.NativeLayerNorm, _always),
    _nn.RoPE: (layers.NativeRoPE, _always),
}
"""MLX's module: ours, and whether ours takes this layer."""


def install(model: Any) -> int:
    """Let the modules of `model` compute with the native kernels; returns how many changed, 0 for the pure twin.

    For MLX's CPU back end. `uninstall` takes it back.
    """
    if choice.choice == "pure":
        return 0
    changed = 0
    for module in model.modules():
        ours, takes = TABLE.get(type(module), (type(module), _always))
        if ours is not type(module) and takes(module):
            module.__class__ = ours
            changed += 1
    panels.lay_out(model)
    functions.install(model)
    return changed + sum(map(blocks.fuse, model.modules()))


def fuse_again(model: Any) -> None:
    """Make the fused layers of `model` anew of the arrays that it has now."""
    for module in model.modules():
        if blocks.unfuse(module):
            blocks.fuse(module)


def half_precision_weights(model: Any) -> list[mx.array]:
    """What the layers of ours in `model` read in half precision as exactly as in float32.

    Of embeddings only in families known to ask them alone: other models may multiply with their weight themselves.
    """
    kinds = {kind: names for kind, names in layers.HALF_PRECISION.items() if kind is not layers.NativeEmbedding}
    if type(model).__module__ in blocks.FAMILIES:
        kinds = layers.HALF_PRECISION
    parts = ((module, name) for module in model.modules() for name in kinds.get(type(module), ()))
    return [module[name] for module, name in parts if module[name].dtype != mx.float32]


def uninstall(model: Any) -> None:
    """Give MLX's own modules back."""
    origins = {ours: theirs for theirs, (ours, _) in TABLE.items()}
    for module in model.modules():
        blocks.unfuse(module)
        layers.forget(module)
        panels.take_back(module)
        module.__class__ = origins.get(type(module), type(module))
    functions.uninstall(model)
