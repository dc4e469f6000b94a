"""A home of its own for every test of the command line, and the ways to run it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

Shell = Callable[..., Result]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder, named in the environment."""
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("MLX_SERVING_HOME", str(folder))
    for name in list(os.environ):
        if name.startswith("MLX_SERVING__"):
            monkeypatch.delenv(name)
    return folder


@pytest.fixture
def shell(home: Path) -> Shell:
    """Runs the command line in this process: `shell("config", "show")`."""
    from mlx_serving.frontends.cli.main import cli

    def run(*arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(cli, arguments, input=stdin, prog_name="mlx-serving")

    return run


@pytest.fixture
def run(home: Path) -> Run:
    """Runs the command line in a process of its own."""

    def start(
        *arguments: str, stdin: str = "", timeout: float = 60, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "mlx_serving.frontends.cli.main", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env={**os.environ, **environment},
        )

    return start
