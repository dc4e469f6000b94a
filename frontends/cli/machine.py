"""What `doctor` looks at beside MLX: the system, packages, native code, memory, disk, home folder, port.

A check never raises: what cannot be found out is itself a finding.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil

from mlx_serving import native
from mlx_serving.actors.addresses import door_of
from mlx_serving.actors.errors import ModelNotFound, ServingError
from mlx_serving.actors.models.store import ModelStore
from mlx_serving.config.schema import Settings
from mlx_serving.frontends.cli.figures import size
from mlx_serving.frontends.cli.finding import Finding
from mlx_serving.frontends.cli.mlx_probe import mlx_findings

GIB = 1 << 30
LEAST_MEMORY, LEAST_DISK = 1 * GIB, 2 * GIB


def findings(settings: Settings, home: Path) -> Iterator[Finding]:
    """Every finding, cheapest first."""
    yield _system()
    yield from _packages()
    yield _native()
    yield kernel_finding(settings.generation.native_kernels)
    yield from mlx_findings(settings.generation.blas)
    yield _memory()
    yield _disk(home)
    yield home_folder(home)
    yield _model(settings, home)
    yield _server(home)
    yield http_port(settings, home)


def _system() -> Finding:
    python = platform.python_version()
    fact = f"{platform.system()} {platform.release()} {platform.machine()}, Python {python}"
    library, version = platform.libc_ver()
    if library == "glibc":
        fact += f", glibc {version}"
        if tuple(int(part) for part in version.split(".")[:2]) < (2, 35):
            return Finding("system", "fail", fact, "MLX's Linux wheels need glibc 2.35 or newer")
    if platform.system() == "Darwin" and platform.machine() != "arm64":
        return Finding("system", "fail", fact, "MLX needs Apple Silicon on macOS, and a Python built for arm64")
    return Finding("system", "ok", fact)


def _packages() -> Iterator[Finding]:
    for name in ("mlx-serving", "mlx-lm"):
        try:
            yield Finding(name, "ok", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "fail", "not installed", "reinstall mlx-serving")


def _native() -> Finding:
    chosen = native.status()
    fact = f"{chosen.choice}: {chosen.reason}"
    if chosen.choice == "native" or os.environ.get("MLX_SERVING_NATIVE") == "pure":
        return Finding("native code", "ok", fact)
    return Finding("native code", "warn", fact, "install a C++ compiler, then reinstall mlx-serving")


def kernel_finding(wanted: bool) -> Finding:
    """On the kernels of MLX's CPU back end; `wanted`: generation.native_kernels."""
    chosen = native.status()
    fact = f"{chosen.kernels}: {chosen.kernels_reason}"
    if not wanted:
        return Finding("CPU kernels", "ok", f"pure: switched off by generation.native_kernels ({fact})")
    if chosen.kernels == "native" or os.environ.get("MLX_SERVING_NATIVE") == "pure":
        return Finding("CPU kernels", "ok", fact)
    if chosen.built_for_mlx is not None:
        return Finding("CPU kernels", "warn", fact, f"reinstall mlx-serving, or install mlx=={chosen.built_for_mlx}")
    return Finding("CPU kernels", "warn", fact, "install a C++ compiler, then reinstall mlx-serving")


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    fact = f"{size(memory.available)} of {size(memory.total)} available"
    if memory.available < LEAST_MEMORY:
        return Finding("memory", "warn", fact, "end other programs, or use --profile low-memory")
    return Finding("memory", "ok", fact)


def _disk(home: Path) -> Finding:
    try:
        free = shutil.disk_usage(home).free
    except OSError as error:
        return Finding("disk", "fail", f"{home}: {error}", "point MLX_SERVING_HOME to a folder on a working disk")
    fact = f"{size(free)} free in {home}"
    if free < LEAST_DISK:
        return Finding("disk", "warn", fact, "free some space, or point MLX_SERVING_HOME to another disk")
    return Finding("disk", "ok", fact)


def home_folder(home: Path) -> Finding:
    """Others must not read it: it holds sockets, and perhaps an API key."""
    mode = stat.S_IMODE(home.stat().st_mode)
    fact = f"{home} has mode {mode:04o}"
    if not os.access(home, os.W_OK | os.X_OK):
        return Finding("home folder", "fail", f"{fact} and is not writable", "point MLX_SERVING_HOME elsewhere")
    if mode & 0o077:
        return Finding("home folder", "warn", f"{fact}: others can look in", f"run: chmod 700 {home}")
    return Finding("home folder", "ok", fact)


def _model(settings: Settings, home: Path) -> Finding:
    name = settings.models.default
    try:
        record = ModelStore(home).resolve(name, [Path(folder) for folder in settings.models.trusted_folders])
    except ModelNotFound:
        advice = f"fetch it with: mlx-serving models pull {name} (serve does so too)"
        return Finding("default model", "warn", f"{name} is not here", advice)
    except ServingError as error:
        return Finding("default model", "fail", error.message, f"see: mlx-serving models show {name}")
    if record.bytes > psutil.virtual_memory().available:
        fact = f"{name} ({size(record.bytes)}) is larger than the memory available"
        return Finding("default model", "warn", fact, "choose a smaller model, or fewer bits at import")
    return Finding("default model", "ok", f"{name}, {size(record.bytes)}")


def _server(home: Path) -> Finding:
    if door_of(home) is None:
        return Finding("server", "ok", "none runs on this home")
    return Finding("server", "ok", "runs on this home; see: mlx-serving status")


def http_port(settings: Settings, home: Path) -> Finding:
    """Whether `serve` could bind, and if not, who is in the way."""
    host, port = settings.http.host, settings.http.port
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family):
            return Finding("port", "ok", f"{host}:{port} is free")
    except OSError as error:
        fact, holder = f"{host}:{port} cannot be bound: {error.strerror}", _listener(port)
    if holder is not None:
        fact = f"{host}:{port} is held by {holder}"
        if door_of(home) is not None and ("mlx-serving" in holder or "mlx_serving" in holder):
            return Finding("port", "ok", fact)
    return Finding("port", "warn", fact, "end that program, or serve with --port 0 (any free one)")


def _listener(port: int) -> str | None:
    """Name and pid of the process that listens on a TCP port, where the system lets us see it."""
    try:
        connections = psutil.net_connections(kind="tcp")
        pid = next(one.pid for one in connections if one.status == "LISTEN" and one.laddr and one.laddr.port == port)
        process = psutil.Process(pid)
        words = [Path(word).name for word in process.cmdline()[:3]]
        return f"{' '.join(words) or process.name()} (pid {pid})"
    except (psutil.Error, OSError, StopIteration):
        return None
