"""The choice of twin is made at import, so each case is a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from mlx_serving import native

BUILT = importlib.util.find_spec("mlx_serving.native._accelerator") is not None
REPORT = "from mlx_serving.native import StopMatcher, status; print(status().choice, StopMatcher.__module__)"


def report(choice: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MLX_SERVING_NATIVE": choice}
    return subprocess.run(
        [sys.executable, "-c", REPORT],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_pure_is_forced_by_the_environment() -> None:
    assert report("pure").stdout.split() == ["pure", "mlx_serving.native.pure"]


@pytest.mark.skipif(not BUILT, reason="the native module is not built here")
@pytest.mark.parametrize("choice", ["native", "auto"])
def test_the_built_module_is_taken(choice: str) -> None:
    assert report(choice).stdout.split() == ["native", "mlx_serving.native._accelerator"]


def test_a_wrong_choice_says_what_would_be_right() -> None:
    assert "it must be auto, native or pure" in report("fast").stderr


def test_the_status_names_versions_and_reasons() -> None:
    status = native.status()
    assert status.reason
    assert status.blas_reason
    assert status.running_mlx is not None
