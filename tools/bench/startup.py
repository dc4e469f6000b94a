"""How long a user waits for the command line to say something and for the server to serve."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tools.bench.peers import Recipe, Server
from tools.bench.quantiles import Spread


def command() -> list[str]:
    """The installed command of this interpreter's environment."""
    script = Path(sys.executable).parent / "mlx-serving"
    found = str(script) if script.exists() else shutil.which("mlx-serving")
    return [found] if found else [sys.executable, "-m", "mlx_serving.frontends.cli.main"]


def help_seconds(runs: int) -> list[float]:
    """Wall time of `mlx-serving --help`, run by run; the first one warms the disk cache and does not
    count."""
    return [_timed() for _ in range(runs + 1)][1:]


def _timed() -> float:
    started = time.perf_counter()
    subprocess.run([*command(), "--help"], stdout=subprocess.DEVNULL, check=True, timeout=60)
    return time.perf_counter() - started


def ready_seconds(recipe: Recipe, runs: int, log: Path) -> list[float]:
    """Seconds from starting the server to the first 200 of its readiness path."""
    waits = []
    for _ in range(runs):
        with Server(recipe, log) as server:
            waits.append(server.time_to_ready)
    return waits


def startup(recipes: list[Recipe], help_runs: int, ready_runs: int, out: Path) -> dict[str, Any]:
    """Both, for this command line and for each recipe."""
    helped = Spread.of(help_seconds(help_runs))
    waits = {
        recipe.name: Spread.of(ready_seconds(recipe, ready_runs, out / "logs" / "startup.log"))
        for recipe in recipes
    }
    return {
        "help": helped.json() if helped else None,
        "ready": {name: spread.json() for name, spread in waits.items() if spread},
    }
