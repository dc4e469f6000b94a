"""The symbol scope is a property of a process, so each case is one of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_serving.native import blas

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="MLX uses Accelerate on macOS")
needs_library = pytest.mark.skipif(
    importlib.util.find_spec("mlx_serving.native._blas") is None, reason="the library is not built here"
)

PRODUCT = """
import json, sys
from mlx_serving.native import blas
{before}
status = blas.install({enabled})
import mlx.core as mx
mx.set_default_device(mx.cpu)
left = mx.random.normal((64, 48), key=mx.random.key(1))
right = mx.random.normal((48, 32), key=mx.random.key(2))
result = (left @ right).tolist()
maps = open("/proc/self/maps").read()
print(json.dumps(dict(
    choice=status.choice, reason=status.reason, threads=status.threads,
    products=blas.products(), result=result,
    loaded="libscipy_openblas" in maps, same=blas.install() == status,
)))
"""


def multiply(before: str = "", enabled: bool = True, **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", PRODUCT.format(before=before, enabled=enabled)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@needs_library
def test_products_of_mlx_arrive_at_openblas_and_agree_with_the_reference() -> None:
    fast, reference = multiply(), multiply(enabled=False)
    assert (fast["choice"], fast["loaded"], fast["same"]) == ("openblas", True, True)
    assert fast["products"] > 0
    for fast_row, row in zip(fast["result"], reference["result"], strict=True):
        assert fast_row == pytest.approx(row, rel=1e-5, abs=1e-5)


@needs_library
def test_threads_the_user_asked_for_are_kept() -> None:
    assert multiply(OPENBLAS_NUM_THREADS="1")["threads"] == 1


@pytest.mark.parametrize(
    ("enabled", "environment", "reason"),
    [
        (False, {}, "switched off by configuration"),
        (True, {"MLX_SERVING_BLAS": "0"}, "switched off by MLX_SERVING_BLAS=0"),
    ],
)
def test_switched_off_it_is_not_loaded(enabled: bool, environment: dict[str, str], reason: str) -> None:
    report = multiply(enabled=enabled, **environment)
    assert (report["choice"], report["reason"]) == ("reference", reason)
    assert (report["loaded"], report["products"]) == (False, 0)


def test_mlx_imported_first_is_reported() -> None:
    report = multiply(before="import mlx.core")
    assert (report["choice"], report["loaded"]) == ("reference", False)
    assert "mlx.core was imported before" in report["reason"]


def as_if_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process looks like that has loaded neither BLAS nor MLX."""
    monkeypatch.setattr(blas, "_installed", None)
    monkeypatch.delitem(sys.modules, "mlx.core", raising=False)


def test_without_the_package_the_reason_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "_shim_path", lambda: Path("shim.so"))
    monkeypatch.setattr(blas, "_openblas", lambda: None)
    as_if_new(monkeypatch)
    assert blas.plan().reason == "the package scipy-openblas32 is not installed"


def test_without_the_built_library_the_reason_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "_shim_path", lambda: None)
    as_if_new(monkeypatch)
    assert "reinstall mlx-serving with a C compiler" in blas.plan().reason


@needs_library
def test_a_library_that_cannot_be_loaded_leaves_the_reference(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "libscipy_openblas.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(blas, "_openblas", lambda: broken)
    as_if_new(monkeypatch)
    status = blas.install()
    assert status.choice == "reference"
    assert "loading OpenBLAS failed" in status.reason
