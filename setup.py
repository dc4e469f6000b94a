"""Only the native extensions; everything else stands in setup.cfg.

All are optional: without a compiler the installation succeeds and the pure twins run.
"""

from __future__ import annotations

import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("native/src")


def kernels() -> Extension | None:
    """The kernels of MLX's CPU back end, for the one mlx version that is installed while building."""
    mlx, nanobind = importlib.util.find_spec("mlx"), importlib.util.find_spec("nanobind")
    if mlx is None or nanobind is None or not mlx.submodule_search_locations:
        return None
    package, binding = Path(next(iter(mlx.submodule_search_locations))), Path(str(nanobind.origin)).parent
    headers = (package / "include", binding / "include", binding / "ext/robin_map/include")
    # libmlx is in the process already when the module is imported after mlx.core; the path is for tools.
    origin = "@loader_path" if sys.platform == "darwin" else "$ORIGIN"
    return Extension(
        "mlx_serving.native._kernels",
        [*map(str, sorted(SOURCES.rglob("*.cpp"))), str(binding / "src/nb_combined.cpp")],
        depends=[str(path) for end in ("hpp", "inl") for path in sorted(SOURCES.rglob(f"*.{end}"))],
        library_dirs=[str(package / "lib")],
        libraries=["mlx"],
        define_macros=[("NB_DOMAIN", "mlx"), ("NDEBUG", None)],
        # Warnings are of our sources: headers of others are the system's. GCC warns of its own intrinsics.
        extra_compile_args=[
            *(part for folder in headers for part in ("-isystem", str(folder))),
            *("-std=c++20", "-O3", "-g0", "-fvisibility=hidden", "-fno-strict-aliasing", "-Wall", "-Wextra"),
            *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),
        ],
        extra_link_args=[f"-Wl,-rpath,{origin}/../../mlx/lib"],
        language="c++",
        optional=True,
    )


class ParallelBuild(build_ext):
    """Compiles the files of an extension side by side, so that all cores help."""

    def build_extensions(self) -> None:
        compile_one = self.compiler.compile

        def compile_all(sources: list[str], *args: object, **options: object) -> list[str]:
            with ThreadPoolExecutor() as pool:
                parts = pool.map(lambda source: compile_one([source], *args, **options), sources)
                return [name for part in parts for name in part]

        self.compiler.compile = compile_all
        super().build_extensions()


extensions = [
    Extension(
        "mlx_serving.native._accelerator",
        ["native/_accelerator.pyx"],
        extra_compile_args=["-O3", "-g0"],
        optional=True,
    )
]
if sys.platform == "linux":
    # Not a Python module: native/blas.py loads it with ctypes. MLX on macOS uses Accelerate and needs none.
    extensions.append(
        Extension(
            "mlx_serving.native._blas",
            ["native/src/blas_shim.c"],
            extra_compile_args=["-O2", "-g0", "-std=c11", "-fvisibility=hidden"],
            optional=True,
        )
    )
if (extension := kernels()) is not None:
    extensions.append(extension)

setup(ext_modules=extensions, cmdclass={"build_ext": ParallelBuild})
