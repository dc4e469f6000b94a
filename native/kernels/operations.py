"""Loads the twin that `kernel_choice` plans; importing this imports mlx."""

from __future__ import annotations

import importlib
from types import ModuleType

import mlx.core as mx  # noqa: F401  the native module needs libmlx and the type of its arrays in the process

from mlx_serving.native import kernel_choice
from mlx_serving.native.cores import usable_cores
from mlx_serving.native.kernel_choice import KernelChoice

_NEWEST = ("attend_quantized_in_place",)
"""What a build from before the last addition lacks."""


def _load() -> tuple[ModuleType, KernelChoice]:
    planned = kernel_choice.plan()
    pure = importlib.import_module("mlx_serving.native.kernels.pure")
    if planned.choice == "pure":
        return pure, planned
    try:
        module = importlib.import_module("mlx_serving.native._kernels")
    except ImportError as error:
        reason = f"the native kernels cannot be loaded: {error}"
        return pure, KernelChoice("pure", reason, planned.built_for_mlx)
    missing = [name for name in _NEWEST if not hasattr(module, name)]
    if missing:
        reason = (
            f"the native kernels were built from older sources: they have no {', '.join(missing)}; build them again"
        )
        return pure, KernelChoice("pure", reason, planned.built_for_mlx)
    module.set_threads(usable_cores())
    return module, planned


OPERATIONS, choice = _load()
