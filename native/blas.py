"""A fast BLAS ahead of the reference one that MLX's Linux wheel links.

`install()` must run before the first `import mlx.core` of the process. It loads OpenBLAS from the package
scipy-openblas32 and, with RTLD_GLOBAL, the library built from src/blas_shim.c, whose `cblas_*gemm` then stand
first in the symbol scope and pass on to OpenBLAS. Products in float32, float64 and complex64 gain; quantised
products do not call a BLAS. On macOS MLX uses Accelerate and nothing is done.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import attrs

from mlx_serving.native.cores import usable_cores

BlasChoice = Literal["openblas", "reference", "accelerate"]

_GEMMS = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")
_SPIN = "16"
"""log2 of the cycles an idle OpenBLAS thread spins before it sleeps. The default, 26, burns some 20 ms of a
core after each product, which the host process needs."""


@attrs.frozen
class BlasStatus:
    """Which BLAS the products of MLX's CPU back end use, and why."""

    choice: BlasChoice
    reason: str
    installed: bool = False
    """True once it is loaded into this process; False while this is only what `install` would do."""
    threads: int | None = None
    library: str | None = None


_installed: BlasStatus | None = None
_shim: ctypes.CDLL | None = None


def install(enabled: bool = True) -> BlasStatus:
    """Put OpenBLAS ahead of the reference BLAS, once per process; says what was done and why. Never raises.

    `enabled=False`, or MLX_SERVING_BLAS=0 in the environment, leaves MLX as it came.
    """
    global _installed
    if _installed is None:
        planned = plan(enabled)
        if planned.choice != "openblas":
            return planned
        try:
            _installed = _load()
        except OSError as error:
            return BlasStatus("reference", f"loading OpenBLAS failed: {error}")
    return _installed


def plan(enabled: bool = True) -> BlasStatus:
    """What `install` did in this process or would do now; loads nothing."""
    if _installed is not None:
        return _installed
    if sys.platform == "darwin":
        return BlasStatus("accelerate", "MLX uses Accelerate on macOS")
    obstacle = _obstacle(enabled)
    if obstacle is not None:
        return BlasStatus("reference", obstacle)
    return BlasStatus("openblas", "OpenBLAS is there and enabled", library=str(_openblas()))


def products() -> int:
    """Products passed on to OpenBLAS since `install`; 0 without it."""
    return int(_shim.mlx_serving_blas_products()) if _shim is not None else 0


def _obstacle(enabled: bool) -> str | None:
    if not enabled:
        return "switched off by configuration"
    if os.environ.get("MLX_SERVING_BLAS") == "0":
        return "switched off by MLX_SERVING_BLAS=0"
    if sys.platform != "linux":
        return f"no fast BLAS is provided for {sys.platform}"
    if "mlx.core" in sys.modules:
        return "mlx.core was imported before the fast BLAS was installed; install it first"
    if _shim_path() is None:
        return "its library was not built: reinstall mlx-serving with a C compiler present"
    if _openblas() is None:
        return "the package scipy-openblas32 is not installed"
    return None


def _load() -> BlasStatus:
    global _shim
    with _environment(OPENBLAS_NUM_THREADS=str(_threads()), OPENBLAS_THREAD_TIMEOUT=_SPIN):
        openblas = ctypes.CDLL(str(_openblas()))
    shim = ctypes.CDLL(str(_shim_path()), mode=ctypes.RTLD_GLOBAL)
    shim.mlx_serving_blas_products.restype = ctypes.c_ulonglong
    shim.mlx_serving_blas_bind(*(_address(openblas, f"scipy_{name}") for name in _GEMMS))
    if _address(ctypes.CDLL(None), _GEMMS[0]).value != _address(shim, _GEMMS[0]).value:
        raise OSError("another library of this process already provides cblas_sgemm")
    _shim = shim
    in_use = int(openblas.scipy_openblas_get_num_threads())
    return BlasStatus("openblas", "loaded ahead of the reference BLAS", True, in_use, str(_openblas()))


def _threads() -> int:
    """One core is left to the host process: with a thread on every core, each product waits for the one whose
    core is taken, and small products are up to 30 times slower than on one thread (2 cores, one busy)."""
    return max(1, usable_cores() - 1)


def _address(library: ctypes.CDLL, name: str) -> ctypes.c_void_p:
    try:
        return ctypes.cast(getattr(library, name), ctypes.c_void_p)
    except AttributeError as error:
        raise OSError(str(error)) from error


def _shim_path() -> Path | None:
    spec = importlib.util.find_spec("mlx_serving.native._blas")
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def _openblas() -> Path | None:
    spec = importlib.util.find_spec("scipy_openblas32")
    if spec is None or spec.origin is None:
        return None
    return next((Path(spec.origin).parent / "lib").glob("libscipy_openblas*.so*"), None)


@contextmanager
def _environment(**defaults: str) -> Iterator[None]:
    """Variables OpenBLAS reads while it loads, unless the user set them; other libraries never see ours."""
    added = {name: value for name, value in defaults.items() if name not in os.environ}
    if "OMP_NUM_THREADS" in os.environ:
        added.pop("OPENBLAS_NUM_THREADS", None)
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
