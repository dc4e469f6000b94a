"""Native code and its pure twins; which of the two runs is chosen here and nowhere else.

`MLX_SERVING_NATIVE` forces the choice: `pure`, `native` (ImportError where it was not built), or the default
`auto`, which takes the compiled twin where it was built. The BLAS is apart from this: see `blas`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import shutil
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import attrs

from mlx_serving.native import blas, pure

__all__ = ["NativeStatus", "StopMatcher", "status"]

Choice = Literal["native", "pure"]


@attrs.frozen
class NativeStatus:
    """What `doctor`, /health and the header of every benchmark say about native code."""

    choice: Choice
    reason: str
    built_for_mlx: str | None
    """The one mlx version the compiled twin works with; None while it calls nothing of mlx."""
    running_mlx: str | None
    """The installed mlx version; None if there is none."""
    blas: blas.BlasChoice
    blas_reason: str
    blas_threads: int | None
    """None until the BLAS is loaded into this process."""
    compiler: str | None
    """The g++ that MLX's CPU back end calls for `mx.compile`; None if there is none on the path."""


def _choose() -> tuple[ModuleType, Choice, str]:
    wanted = os.environ.get("MLX_SERVING_NATIVE", "auto")
    if wanted not in ("auto", "native", "pure"):
        raise ImportError(f"MLX_SERVING_NATIVE is {wanted!r}; it must be auto, native or pure")
    if wanted == "pure":
        return pure, "pure", "forced by MLX_SERVING_NATIVE=pure"
    try:
        module = importlib.import_module("mlx_serving.native._accelerator")
    except ImportError as error:
        if wanted == "native":
            raise ImportError(f"MLX_SERVING_NATIVE=native, but the native module cannot be used: {error}") from error
        return pure, "pure", f"the native module cannot be used: {error}"
    return module, "native", f"built and importable, with MLX_SERVING_NATIVE={wanted}"


_module, _choice, _reason = _choose()

if TYPE_CHECKING:
    from mlx_serving.native.pure import StopMatcher
else:
    StopMatcher = _module.StopMatcher


def status() -> NativeStatus:
    """The choice made in this process and what it rests on; imports nothing of mlx."""
    product = blas.plan()
    return NativeStatus(
        choice=_choice,
        reason=_reason,
        built_for_mlx=None,
        running_mlx=_installed_mlx(),
        blas=product.choice,
        blas_reason=product.reason,
        blas_threads=product.threads,
        compiler=shutil.which("g++"),
    )


def _installed_mlx() -> str | None:
    try:
        return importlib.metadata.version("mlx")
    except importlib.metadata.PackageNotFoundError:
        return None
