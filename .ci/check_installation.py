"""Checks of an installed wheel, run by the Python of a clean environment: CHECKOUT WHEEL.

The wheel holds every module and data file of the checkout and nothing else, and all modules import without
extras.
"""

from __future__ import annotations

import importlib
import shutil
import sys
import zipfile
from pathlib import Path

FOLDERS = ("actors", "config", "frontends", "native")


def expected(checkout: Path) -> set[str]:
    sources = [path for folder in FOLDERS for path in (checkout / folder).rglob("*")]
    wanted = [path for path in sources if path.suffix in (".py", ".pyi", ".yaml") or path.name == "py.typed"]
    return {f"mlx_serving/{path.relative_to(checkout).as_posix()}" for path in wanted}


def compare(checkout: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    compiled = {name for name in packed if name.endswith(".so")}
    missing, extra = expected(checkout) - packed, packed - compiled - expected(checkout)
    if missing or extra:
        sys.exit(f"wheel differs from the checkout: missing {sorted(missing)}, not wanted {sorted(extra)}")


def import_all(checkout: Path) -> int:
    modules = [name for name in sorted(expected(checkout)) if name.endswith(".py")]
    for name in modules:
        module = importlib.import_module(name.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
        if checkout in Path(str(module.__file__)).parents:
            sys.exit(f"{module.__name__} came from the checkout, not from the wheel")
    return len(modules)


def check_kernels(wheel: Path) -> str:
    """Where there is a compiler the wheel carries the native kernels; where it does they must load and compute."""
    with zipfile.ZipFile(wheel) as archive:
        carried = any("/_kernels." in name for name in archive.namelist())
    if not carried and shutil.which("c++"):
        sys.exit("there is a compiler, but the native kernels were not built")
    kernels = importlib.import_module("mlx_serving.native.kernels")
    if carried and kernels.choice.choice != "native":
        sys.exit(f"the wheel's native kernels do not run: {kernels.choice.reason}")
    mx = importlib.import_module("mlx.core")
    if kernels.operations.matmul(mx.ones((1, 8)), mx.ones((2, 8))).tolist() != [[8.0, 8.0]]:
        sys.exit("the kernels computed something else")
    return f"kernels: {kernels.choice.choice}"


def main() -> None:
    checkout, wheel = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    compare(checkout, wheel)
    count = import_all(checkout)
    native = importlib.import_module("mlx_serving.native")
    print(f"{wheel.name}: {count} modules import; {check_kernels(wheel)}; {native.status()}")


if __name__ == "__main__":
    main()
