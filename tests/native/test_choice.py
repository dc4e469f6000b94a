"""The choice of twin is made at import, so each case is a process of its own."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys

import pytest

from mlx_serving import native
from mlx_serving.native import kernel_choice
from mlx_serving.native.kernels import choice as kernels_in_use
from mlx_serving.native.kernels import pure

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


def test_kernels_run_with_the_mlx_they_were_built_for_and_with_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_choice, "built_for_mlx", lambda: "0.32.4")
    monkeypatch.delenv("MLX_SERVING_NATIVE", raising=False)
    assert kernel_choice.plan("0.32.4").choice == "native"
    other = kernel_choice.plan("0.33.0")
    assert (other.choice, other.built_for_mlx) == ("pure", "0.32.4")
    assert "built for mlx 0.32.4, but mlx 0.33.0 is installed" in other.reason


def test_kernels_that_were_not_built_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_choice, "built_for_mlx", lambda: None)
    monkeypatch.delenv("MLX_SERVING_NATIVE", raising=False)
    assert "reinstall mlx-serving with a C++ compiler" in kernel_choice.plan("0.32.4").reason


def test_forcing_pure_switches_the_kernels_off_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_SERVING_NATIVE", "pure")
    assert kernel_choice.plan().reason == "forced by MLX_SERVING_NATIVE=pure"


@pytest.mark.skipif(kernels_in_use.choice == "pure", reason="the native kernels are not built here")
def test_kernels_from_older_sources_are_named_and_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    operations = importlib.import_module("mlx_serving.native.kernels.operations")
    monkeypatch.setattr(operations, "_NEWEST", ("draw", "what_a_later_version_adds"))
    module, choice = operations._load()
    assert module is pure
    assert choice.choice == "pure"
    assert "they have no what_a_later_version_adds; build them again" in choice.reason
