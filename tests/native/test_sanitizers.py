"""The C++, built with AddressSanitizer and UndefinedBehaviorSanitizer.

The core alone meets random shapes, and all of it, below Python, the tests of the kernels.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mlx_serving.native import kernel_choice

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "native/src"
CORE = SOURCES / "cpu"
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
FLAGS = ["-std=c++20", "-O0", "-fPIC", *WARNINGS, "-fno-strict-aliasing", "-fsanitize=address,undefined"]
UNDER_PYTHON = """
import importlib.util, sys
import mlx.core, pytest
spec = importlib.util.spec_from_file_location("mlx_serving.native._kernels", sys.argv[1])
sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.exit(pytest.main(["-q", "-s", "-p", "no:cacheprovider", "-k", module.instructions(), *sys.argv[2:]]))
"""
"""Has tests take the library it is given for the one that is installed. What a sanitizer says is not captured."""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ here"),
]


def compiled(sources: Sequence[Path], folder: Path, *flags: str) -> list[str]:
    def one(source: Path) -> str:
        target = str(folder / f"{source.stem}.o")
        command = ["g++", *FLAGS, "-fno-sanitize-recover=all", *flags, "-c", str(source), "-o", target]
        subprocess.run(command, check=True, timeout=900)
        return target

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, sources))


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Its objects."""
    return compiled(sorted(CORE.glob("*.cpp")), tmp_path_factory.mktemp("core"))


def test_random_shapes_find_nothing_under_the_sanitizers(core: list[str], tmp_path: Path) -> None:
    fuzz = compiled([ROOT / "tests/native/cpp/fuzz.cpp"], tmp_path, f"-I{CORE}")
    program = tmp_path / "fuzz"
    subprocess.run(["g++", *FLAGS, *core, *fuzz, "-pthread", "-o", str(program)], check=True, timeout=300)
    done = subprocess.run([program, "30"], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert "scalar: 30 turns" in done.stdout


def package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"there is no {name} here")
    return Path(next(iter(spec.submodule_search_locations)))


@pytest.mark.skipif(sys.platform != "linux", reason="this way to put a library first is Linux's")
@pytest.mark.skipif(kernel_choice.plan().choice == "pure", reason="the native kernels are not built here")
def test_operations_of_mlx_find_nothing_under_the_sanitizers(core: list[str], tmp_path: Path) -> None:
    mlx, nanobind = package("mlx"), package("nanobind")
    headers = (mlx / "include", nanobind / "include", nanobind / "ext/robin_map/include")
    flags = [part for folder in (*headers, sysconfig.get_path("include")) for part in ("-isystem", str(folder))]
    sources = [
        *sorted((SOURCES / "primitives").glob("*.cpp")),
        SOURCES / "binding.cpp",
        nanobind / "src/nb_combined.cpp",
    ]
    binding = compiled(sources, tmp_path, *flags, "-DNB_DOMAIN=mlx", "-DNDEBUG", "-fvisibility=hidden")
    library = tmp_path / "_kernels.so"
    links = [f"-L{mlx / 'lib'}", "-lmlx", f"-Wl,-rpath,{mlx / 'lib'}", "-pthread"]
    subprocess.run(["g++", "-shared", *FLAGS, *core, *binding, *links, "-o", str(library)], check=True, timeout=300)

    names = ("libasan.so", "libubsan.so")
    first = [subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip() for name in names]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            UNDER_PYTHON,
            str(library),
            *("tests/native/kernels", "tests/native/test_stacks.py"),
        ],
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": ":".join(first), "ASAN_OPTIONS": "detect_leaks=0"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    # What a sanitizer finds ends the process before pytest sums up. A bound may fail: without optimisation sums are
    # rounded otherwise.
    assert " passed" in done.stdout, done.stdout[-4000:] + done.stderr[-4000:]
