"""What MLX is on this machine, asked in a process of its own, so that even its crash is a finding."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlx_serving import native
from mlx_serving.frontends.cli.finding import Finding

PROBE_SECONDS = 120

PROBE = """
import json, sys
from mlx_serving.native import blas
chosen = blas.install(sys.argv[1] == "1")
import mlx.core as mx
product = mx.ones((64, 64)) @ mx.ones((64, 64))
mx.eval(product)
found = {
    "version": mx.__version__,
    "device": str(mx.default_device()),
    "metal": mx.metal.is_available(),
    "cuda": bool(getattr(mx, "cuda", None)) and mx.cuda.is_available(),
    "right": product[0, 0].item() == 64.0,
    "blas": chosen.choice, "blas_reason": chosen.reason, "blas_threads": chosen.threads,
    "blas_products": blas.products(),
}
try:
    mx.eval(mx.compile(lambda x: mx.exp(x) * 2 + 1)(mx.ones(8)))
    found["compile"] = ""
except Exception as error:
    found["compile"] = str(error).splitlines()[0] if str(error) else type(error).__name__
print(json.dumps(found))
"""
"""Prints what MLX is on this machine; its argument says whether the fast BLAS is wanted."""


def mlx_findings(blas: bool) -> Iterator[Finding]:
    """Back end, BLAS and compiler; `blas` says whether the fast BLAS is wanted."""
    try:
        found = probe(blas)
    except ProbeFailed as error:
        yield Finding("MLX", "fail", str(error), "reinstall MLX; on Linux with: pip install 'mlx[cpu]'")
        return
    yield _backend(found)
    yield _blas(found)
    yield _compiler(found)


class ProbeFailed(Exception):
    """MLX could not be asked; the text says how it failed."""


def probe(blas: bool, source: str = PROBE) -> dict[str, Any]:
    """What MLX says about itself in a fresh process."""
    command = [sys.executable, "-c", source, "1" if blas else "0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ProbeFailed(f"gives no answer within {PROBE_SECONDS} s") from None
    if done.returncode < 0:
        raise ProbeFailed(f"crashes with signal {-done.returncode}")
    if done.returncode:
        raise ProbeFailed((done.stderr.strip().splitlines() or ["fails and does not say why"])[-1])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _backend(found: dict[str, Any]) -> Finding:
    backend = "Metal" if found["metal"] else "CUDA" if found["cuda"] else "CPU"
    fact = f"{found['version']}, {backend} back end, default device {found['device']}"
    if not found["right"]:
        return Finding("MLX", "fail", f"{fact}: computes wrong products", "reinstall MLX")
    if backend == "CPU" and _has_nvidia():
        return Finding("MLX", "warn", fact, "there is an NVIDIA GPU: install MLX's CUDA back end")
    return Finding("MLX", "ok", fact)


def _has_nvidia() -> bool:
    return Path("/proc/driver/nvidia/version").exists() and shutil.which("nvidia-smi") is not None


def _blas(found: dict[str, Any]) -> Finding:
    threads = f" (threads: {found['blas_threads']})" if found["blas_threads"] else ""
    fact = f"{found['blas']}: {found['blas_reason']}{threads}"
    if found["metal"] or found["cuda"]:
        return Finding("BLAS", "ok", fact)
    if found["blas"] == "reference":
        return Finding("BLAS", "warn", fact, "prefill is many times faster with OpenBLAS: mend what it says")
    if found["blas"] == "openblas" and not found["blas_products"]:
        return Finding("BLAS", "warn", f"{fact}, but MLX does not call it", "reinstall mlx-serving")
    return Finding("BLAS", "ok", fact)


def _compiler(found: dict[str, Any]) -> Finding:
    compiler = native.status().compiler
    on_cpu = not (found["metal"] or found["cuda"])
    if not found["compile"]:
        if on_cpu and compiler is None:
            return Finding("mx.compile", "ok", "off: no g++ on the path, so functions run uncompiled; nothing needs it")
        return Finding("mx.compile", "ok", f"works, with {compiler}" if on_cpu else "works")
    fact = f"fails: {found['compile']}"
    advice = "install g++ (build-essential)" if compiler is None else f"check that {compiler} works"
    return Finding("mx.compile", "warn", fact, advice)
