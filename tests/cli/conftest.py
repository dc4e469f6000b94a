"""A home of its own for every test of the command line, and the ways to run it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.server import COMMAND, environment

Shell = Callable[..., Result]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty home folder, named in the environment, which sets nothing else."""
    for name in list(os.environ):
        if name.startswith("MLX_SERVING__"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MLX_SERVING_HOME", str(home))
    return home


@pytest.fixture
def shell(home: Path) -> Shell:
    """Runs the command line in this process: `shell("config", "show")`."""
    from mlx_serving.frontends.cli.main import cli

    def run(*arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(cli, arguments, input=stdin, prog_name="mlx-serving")

    return run


@pytest.fixture
def run(home: Path) -> Run:
    """Runs the command line in a process of its own: `run("status")`; `home=` names another home."""

    def start(
        *arguments: str, stdin: str = "", home: Path = home, **settings: object
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=environment(home, **settings),
        )

    return start
