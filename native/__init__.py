"""Native code and its pure twins; which of the two runs is chosen here and nowhere else.

`MLX_SERVING_NATIVE` forces the choice: `pure`, `native` (ImportError where it was not built), or the default
`auto`, which takes the compiled twin where it was built. Apart from this are the BLAS (`blas`) and the kernels of
MLX's CPU back end (`kernel_choice`, `kernels`), which `pure` switches off too.
"""

from __future__ import annotations

import importlib
import os
import shutil
from types import ModuleType
from typing import TYPE_CHECKING

import attrs

from mlx_serving.native import blas, kernel_choice, pure
from mlx_serving.native.kernel_choice import Choice

__all__ = ["ByteDecoder", "NativeStatus", "StopMatcher", "TokenTexts", "chained_digests", "status", "unpack_rows"]

_TWINS = ("ByteDecoder", "StopMatcher", "TokenTexts", "chained_digests", "unpack_rows")


@attrs.frozen
class NativeStatus:
    """What `doctor`, /health and the header of every benchmark say about native code."""

    choice: Choice
    reason: str
    kernels: Choice
    """The twin of the CPU back end's kernels."""
    kernels_reason: str
    built_for_mlx: str | None
    """The one mlx version the kernels work with; None where they were not built."""
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
        missing = [name for name in _TWINS if not hasattr(module, name)]
        if missing:
            raise ImportError(f"it was built from other sources and has no {missing[0]}")
    except ImportError as error:
        if wanted == "native":
            raise ImportError(f"MLX_SERVING_NATIVE=native, but the native module cannot be used: {error}") from error
        return pure, "pure", f"the native module cannot be used: {error}"
    return module, "native", f"built and importable, with MLX_SERVING_NATIVE={wanted}"


_module, _choice, _reason = _choose()

if TYPE_CHECKING:
    from mlx_serving.native.pure import ByteDecoder, StopMatcher, TokenTexts, chained_digests, unpack_rows
else:
    ByteDecoder, StopMatcher, TokenTexts = _module.ByteDecoder, _module.StopMatcher, _module.TokenTexts
    chained_digests, unpack_rows = _module.chained_digests, _module.unpack_rows


def status() -> NativeStatus:
    """The choice made in this process and what it rests on; imports nothing of mlx."""
    product, kernels = blas.plan(), kernel_choice.plan()
    return NativeStatus(
        choice=_choice,
        reason=_reason,
        kernels=kernels.choice,
        kernels_reason=kernels.reason,
        built_for_mlx=kernels.built_for_mlx,
        running_mlx=kernel_choice.installed_mlx(),
        blas=product.choice,
        blas_reason=product.reason,
        blas_threads=product.threads,
        compiler=shutil.which("g++"),
    )
