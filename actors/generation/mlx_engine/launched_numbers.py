"""A few numbers from the host to CUDA's device, as arguments of a kernel that writes them down.

MLX puts a new array of the host's into managed memory, which the device fetches by a page fault in the middle of the
kernel that reads it: 0.2 to 0.5 ms on an H200, for the lengths of eight rows as for the numbers that they draw with.
What rides on a launch is there when the kernel runs: the one that looked up a chunk's ids took 3 µs then.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_serving.actors.generation.mlx_engine import cuda_programs

_log = logging.getLogger(__name__)
_SIZES = (16, 64, 160)
"""Words of a launch: lengths of some rows, a short chunk's ids or 16 rows' draws, a longer one's or 32 rows'."""
_FEW_WORDS = 2
"""So many MLX keeps in memory that both sides reach."""
_THREADS = 32


def integers(values: Sequence[int]) -> mx.array:
    """int32 numbers on the device, still to be computed."""
    if len(values) <= _FEW_WORDS or not _can_carry(len(values)):
        return mx.array(list(values), dtype=mx.int32)
    return _launched(list(values))


def table(rows: Sequence[Sequence[int]], width: int) -> mx.array:
    """int32 numbers [rows, width]; 0 where a row has fewer."""
    filled = [number for row in rows for number in (*row, *[0] * (width - len(row)))]
    return integers(filled).reshape(len(rows), width)


def floats(values: NDArray[np.float32]) -> mx.array:
    """A copy of float32 numbers on the device, still to be computed."""
    if not _can_carry(values.size):
        return mx.array(values)
    bits: list[int] = values.reshape(-1).view(np.int32).tolist()
    return _launched(bits).view(mx.float32).reshape(values.shape)


def prepare() -> None:
    """Compile the kernels, and see what they give: that takes evaluations, which must not fall into a tracing."""
    _carries()


def _can_carry(words: int) -> bool:
    return words <= _SIZES[-1] and _carries()


@functools.cache
def _carries() -> bool:
    """Whether numbers arrive here in this way."""
    if cuda_programs.architecture() is None:
        return False
    try:
        for size in _SIZES:
            given = [-1, *range(1, size)]
            if _launched(given).tolist() != given:
                raise ArithmeticError("they arrived changed")
    except Exception as error:  # of NVRTC, of MLX
        _log.warning("numbers of the host's reach the device slowly: %s", error)
        return False
    return True


def _launched(values: list[int]) -> mx.array:
    count = len(values)
    size = next(size for size in _SIZES if count <= size)
    name, code = _kernel(size)
    (found,) = mx.fast.precompiled_cuda_kernel(
        name=name,
        compiled_source=code,
        inputs=[],
        output_shapes=[(size,)],
        output_dtypes=[mx.int32],
        scalars=[*values, *[0] * (size - count)],
        grid=(_THREADS, 1, 1),
        threadgroup=(_THREADS, 1, 1),
    )
    return found if count == size else found[:count]


@functools.cache
def _kernel(size: int) -> tuple[str, bytes]:
    """Name and machine code of the kernel for so many words."""
    architecture = cuda_programs.architecture()
    assert architecture is not None
    text = source(size)
    name = f"numbers_{size}_{hashlib.blake2s(text.encode(), digest_size=8).hexdigest()}"
    return name, cuda_programs.compiled(text.replace(_NAME, name), architecture)


_NAME = "KERNEL_NAME"


def source(size: int) -> str:
    """The kernel's, but for its name."""
    names = [f"number_{place}" for place in range(size)]
    parameters = ", ".join(f"int {name}" for name in names)
    return f"""extern "C" __global__ void {_NAME}(int* out, {parameters}) {{
    const int given[] = {{{", ".join(names)}}};
    for (int place = threadIdx.x; place < {size}; place += {_THREADS}) out[place] = given[place];
}}
"""
