"""Only the native extensions; everything else stands in setup.cfg.

Both are optional: without a compiler the installation succeeds and the pure twins run.
"""

import sys

from setuptools import Extension, setup

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

setup(ext_modules=extensions)
