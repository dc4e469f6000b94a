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
from tools.bench.spec import Outcome, Request

_FIRST_WORDS = ("Red", "Blue", "Green", "White", "Black", "Gold", "Pink", "Gray", "Brown", "Orange")
_REST = " is the colour of the boats. Write a long story about a lighthouse keeper, a storm, and a boat."


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


def wait_seconds(recipe: Recipe, runs: int, log: Path) -> dict[str, Any]:
    """Seconds from starting the server to the first 200 of its readiness path, which not every server keeps
    back until its model is there, and to the end of the first answer, of two tokens; and what the first streamed
    chat waits for its first token, also in units of the tenth, one after the other."""
    ready, answer, first, ratio = [], [], [], []
    for _ in range(runs):
        started = time.monotonic()
        with Server(recipe, log) as server:
            ready.append(server.time_to_ready)
            outcomes = server.drive([_chat(word) for word in _FIRST_WORDS])
            waits = [_first_token(recipe, outcome) for outcome in outcomes]
            answer.append(outcomes[0].ended - started)
            first.append(waits[0])
            ratio.append(waits[0] / waits[-1])
    return {"ready": _json(ready), "answer": _json(answer), "first": _json(first), "first_to_tenth": _json(ratio)}


def _chat(word: str) -> Request:
    """One of ten that differ in their first word, which is a token of common vocabularies: all are as long."""
    messages = [{"role": "user", "content": word + _REST}]
    return Request({"messages": messages, "max_tokens": 2, "temperature": 0, "stream": True})


def _first_token(recipe: Recipe, outcome: Outcome) -> float:
    if outcome.error is not None or outcome.first is None:
        raise RuntimeError(f"{recipe.name} did not answer: {outcome.error} {outcome.detail}")
    return outcome.first


def startup(recipes: list[Recipe], help_runs: int, server_runs: int, out: Path) -> dict[str, Any]:
    """Both, for this command line and for each recipe."""
    waits = {
        recipe.name: wait_seconds(recipe, server_runs, out / "logs" / f"startup-{number}.log")
        for number, recipe in enumerate(recipes)
    }
    return {"help": _json(help_seconds(help_runs)), "waits": waits}


def _json(samples: list[float]) -> dict[str, Any] | None:
    spread = Spread.of(samples)
    return spread.json() if spread is not None else None
