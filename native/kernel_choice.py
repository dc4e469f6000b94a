"""Whether the native kernels of MLX's CPU back end can run here, decided without importing mlx or them.

They call libmlx, which carries no version of its binary interface, so a build runs with the exact mlx version it was
built for and with no other.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import os
import re
from functools import cache
from pathlib import Path
from typing import Literal

import attrs

Choice = Literal["native", "pure"]

_MARK = re.compile(rb"mlx-serving kernels for mlx (\d[\w.+]*)\0")
"""What src/binding.cpp leaves in the library."""


@attrs.frozen
class KernelChoice:
    """Which twin of the kernels this process uses on the CPU back end, and why."""

    choice: Choice
    reason: str
    built_for_mlx: str | None = None
    """The mlx version they were built for; None where they were not built."""


def plan(running: str | None = None) -> KernelChoice:
    """The choice for this mlx version, by default the installed one. Loads nothing."""
    running = installed_mlx() if running is None else running
    built_for = built_for_mlx()
    obstacle = _obstacle(built_for, running)
    if obstacle is not None:
        return KernelChoice("pure", obstacle, built_for)
    return KernelChoice("native", f"built for mlx {built_for}, which is installed", built_for)


def installed_mlx() -> str | None:
    """The installed version of mlx; None if there is none."""
    try:
        return importlib.metadata.version("mlx")
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def built_for_mlx() -> str | None:
    """The mlx version that stands in the built library; None without one."""
    path = library()
    found = _MARK.search(path.read_bytes()) if path is not None else None
    return found[1].decode() if found is not None else None


def library() -> Path | None:
    """The built module, if there is one for this Python."""
    folder = Path(__file__).parent
    paths = (folder / f"_kernels{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES)
    return next((path for path in paths if path.exists()), None)


def _obstacle(built_for: str | None, running: str | None) -> str | None:
    if os.environ.get("MLX_SERVING_NATIVE") == "pure":
        return "forced by MLX_SERVING_NATIVE=pure"
    if built_for is None:
        return "not built: reinstall mlx-serving with a C++ compiler present"
    if built_for != running:
        return f"built for mlx {built_for}, but mlx {running} is installed: reinstall mlx-serving"
    return None
