"""Every benchmark by name, with what it needs of a run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from tools.bench.around import around as measure_around
from tools.bench.blas import blas as measure_blas
from tools.bench.compare import Plan
from tools.bench.compare import compare as measure_compare
from tools.bench.equality import equality as measure_equality
from tools.bench.inside.child import MEASURES, make_folder, measure
from tools.bench.kernels import LlamaBench
from tools.bench.kernels import kernels as measure_kernels
from tools.bench.memory import memory as measure_memory
from tools.bench.peers import Recipe, Server, mlx_lm_server, ours
from tools.bench.pipeline import measure as measure_pipeline
from tools.bench.precision import peer_folder
from tools.bench.sizes import QUICK, Size
from tools.bench.slow_reader import slow_reader as measure_slow_reader
from tools.bench.startup import startup as measure_startup
from tools.bench.store import model_folder

_SMALL_CACHE = {"GENERATION__PREFIX_CACHE__BYTES": str(16 << 20), "GENERATION__PREFIX_CACHE__DISK_BYTES": str(32 << 20)}
"""A prefix cache that is full, in memory and on disk, long before the first reading."""


@attrs.frozen
class Run:
    """What every benchmark gets."""

    model: str
    out: Path
    size: Size
    peers: tuple[Recipe, ...] = ()
    draft: str = ""
    """Model or folder, for the speculation benchmark."""
    llama: LlamaBench | None = None
    """For the kernels benchmark."""

    def folder(self) -> Path:
        """The model's folder; fetches the model when it is not there."""
        return model_folder(self.model)


def _compare(run: Run) -> dict[str, Any]:
    size = run.size
    plan = Plan(
        size.compare_tokens,
        size.compare_repetitions,
        mixed_clients=size.compare_mixed_clients,
        both_blas=size.compare_both_blas,
    )
    return measure_compare(run.model, run.folder(), plan, run.out, run.peers)


def _equality(run: Run) -> dict[str, Any]:
    return measure_equality(run.model, run.folder(), run.size.equality_prompts, run.out)


def _pipeline(run: Run) -> dict[str, Any]:
    return measure_pipeline(run.model, run.out, 64, run.size.pipeline_tokens, run.size.pipeline_repetitions)


def _memory(run: Run) -> dict[str, Any]:
    """On small random weights: what may grow is not the model."""
    with tempfile.TemporaryDirectory(prefix="bench-") as parent:
        folder = Path(parent) / "random-tiny"
        make_folder("random:tiny:4bit", folder)
        with Server(ours(str(folder), _SMALL_CACHE), run.out / "logs" / "memory.log") as server:
            return measure_memory(server, run.size.memory_requests, run.size.memory_baseline)


def _slow_reader(run: Run) -> dict[str, Any]:
    return measure_slow_reader(run.model, run.out, run.size.stop_seconds)


def _startup(run: Run) -> dict[str, Any]:
    with peer_folder(run.folder()) as folder:
        # Of another run's prompts nothing may be known.
        recipes = [ours(run.model, {"GENERATION__PREFIX_CACHE__ENABLED": "false"}), mlx_lm_server(folder)]
        return measure_startup(recipes, run.size.help_runs, run.size.server_runs, run.out)


def _blas(run: Run) -> dict[str, Any]:
    return measure_blas(run.model, run.folder(), run.size.prefill_tokens, run.size.prefill_repetitions, run.out)


def _around(run: Run) -> dict[str, Any]:
    return measure_around(run.folder(), run.size.around_repetitions)


def _kernels(run: Run) -> dict[str, Any]:
    return measure_kernels(run.folder(), run.size.kernels_rounds, run.llama)


def _inside(name: str) -> Callable[[Run], dict[str, Any]]:
    def run_inside(run: Run) -> dict[str, Any]:
        model = run.model if run.model.startswith("random:") else str(run.folder())
        draft = str(model_folder(run.draft)) if run.draft and name == "speculation" else ""
        return measure(name, model, run.size is QUICK, draft)

    return run_inside


BENCHMARKS: dict[str, Callable[[Run], dict[str, Any]]] = {
    "startup": _startup,
    "pipeline": _pipeline,
    "slow_reader": _slow_reader,
    "blas": _blas,
    "around": _around,
    "kernels": _kernels,
    "equality": _equality,
    "compare": _compare,
    "memory": _memory,
    **{name: _inside(name) for name in MEASURES},
}
