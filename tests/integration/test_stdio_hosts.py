"""Hosts written in JavaScript, each with a real `mlx-serving stdio`: load, generate, cancel, shut down."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HOSTS = Path(__file__).resolve().parent / "hosts"
RUNTIME = (sys.executable, "-m", "mlx_serving.frontends.cli.main", "stdio")
MODEL = "smollm2-135m"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed: its hosts cannot be tested"),
]


@pytest.fixture(scope="module")
def libraries() -> None:
    """The libraries that the hosts use, at the versions of their package.json."""
    if not (HOSTS / "node_modules").is_dir():
        install = ("npm", "install", "--no-audit", "--no-fund", "--no-package-lock")
        subprocess.run(install, cwd=HOSTS, check=True, timeout=300, capture_output=True)


def converse(home: Path, engine: str, host: str, *arguments: str) -> dict[str, Any]:
    """Run a host to its end; its report."""
    environment = {
        **os.environ,
        "MLX_SERVING_HOME": str(home),
        "MLX_SERVING__GENERATION__ENGINE": engine,
        "MLX_SERVING__GENERATION__SCRIPTED_STEP_SECONDS": "0.001",
    }
    command = ("node", str(HOSTS / host), *arguments, MODEL, *RUNTIME)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_a_newline_delimited_host_gets_through_its_whole_life(serving_home: Path) -> None:
    report = converse(serving_home, "scripted", "newline_host.mjs")
    assert report["text"]
    assert report["batches"] is False
    assert report["longest_line"] < 64 << 10


@pytest.mark.parametrize("version", ["9", "10"])
def test_an_editor_gets_through_its_whole_life(serving_home: Path, libraries: None, version: str) -> None:
    assert converse(serving_home, "scripted", "vscode_host.mjs", version)["text"]


@pytest.mark.model
@pytest.mark.slow
def test_both_kinds_of_host_hear_a_real_model(serving_home: Path, libraries: None) -> None:
    assert "Paris" in converse(serving_home, "mlx", "newline_host.mjs")["text"]
    assert "Paris" in converse(serving_home, "mlx", "vscode_host.mjs", "10")["text"]
