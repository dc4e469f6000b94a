"""Benchmarks of the engine in a process of their own, for what asks for them loads nothing of MLX."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.bench.inside.sizes import InsideSize, size_for

MEASURES = ("engine", "prefill", "prefix", "masks", "sampler", "speculation")


def measure(name: str, model: str, quick: bool, draft: str = "") -> dict[str, Any]:
    """Run one in a fresh process; RuntimeError when it fails. `model`: a folder or random weights."""
    command = [sys.executable, str(Path(__file__).parents[1]), "inside", name, model]
    options = ["--quick" if quick else "--full", *(["--draft", draft] if draft else [])]
    done = subprocess.run([*command, *options], stdout=subprocess.PIPE)
    if done.returncode:
        raise RuntimeError(f"{name} of {model} ended with status {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def make_folder(model: str, folder: Path) -> None:
    """Write random weights as a folder that servers load, in a process of its own."""
    subprocess.run([sys.executable, str(Path(__file__).parents[1]), "folder", model, str(folder)], check=True)


def serve(name: str, model: str, quick: bool, draft: str) -> None:
    """The other end: the result on standard output."""
    with os.fdopen(os.dup(1), "w") as output:
        os.dup2(2, 1)  # what libraries print must not look like a result
        json.dump(carry_out(name, model, quick, draft), output)


def carry_out(
    name: str, model: str, quick: bool, draft: str = "", adjust: Callable[[InsideSize], InsideSize] = lambda size: size
) -> dict[str, Any]:
    """Measure in this process; the result says on what. `adjust` changes how much."""
    from mlx_serving.native import blas

    blas.install()
    from mlx_serving.actors.generation.mlx_engine.device import is_cpu
    from tools.bench.inside.device import device
    from tools.bench.inside.models import subject

    size = adjust(size_for(quick, is_cpu()))
    about = {"model": model if model.startswith("random:") else Path(model).name, "device": device()}
    if name == "speculation":
        from tools.bench.inside.speculation import speculation

        return {**about, **speculation(model, draft, size)}
    with subject(model) as loaded:
        return {**about, **_measures()[name](loaded, size)}


def _measures() -> dict[str, Callable[..., dict[str, Any]]]:
    from tools.bench.inside.decode import decode
    from tools.bench.inside.interference import interference
    from tools.bench.inside.masks import masks
    from tools.bench.inside.reuse import reuse
    from tools.bench.inside.sampler import sampler

    return {"engine": decode, "prefill": interference, "prefix": reuse, "masks": masks, "sampler": sampler}


def serve_variant(variant: str, folder: Path, repetitions: int) -> None:
    """The speed of one variant of the CPU back end, on standard output. Stock MLX comes with its own BLAS."""
    from mlx_serving.native import blas

    if variant != "stock":
        blas.install()
    from tools.bench.inside.kernels import kernels
    from tools.bench.inside.models import subject

    with os.fdopen(os.dup(1), "w") as output:
        os.dup2(2, 1)
        with subject(str(folder)) as loaded:
            json.dump(kernels(loaded, variant, repetitions), output)
