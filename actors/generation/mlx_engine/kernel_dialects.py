"""What CUDA and Metal call differently, as macros: each kernel is written once in terms of these.

MLX makes a function of a kernel's source and declares those of Metal's attributes that it finds by name in there
(not in the header), so the prologue names them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import attrs
import mlx.core as mx

from mlx_serving.actors.generation.mlx_engine import cuda_programs


@attrs.frozen
class Dialect:
    """`header` stands before a kernel's function, `prologue` at its beginning.

    `threads`: what a group may have of them where each needs few registers.
    """

    language: Literal["cuda", "metal"]
    threads: int
    header: str
    prologue: str = ""

    def kernel(self, name: str, inputs: Sequence[str], outputs: Sequence[str], source: str, functions: str = "") -> Any:
        """MLX's function for a kernel, which is compiled when it is first evaluated."""
        make = cuda_programs.kernel if self.language == "cuda" else mx.fast.metal_kernel
        return make(
            name=name,
            input_names=inputs,
            output_names=outputs,
            source=self.prologue + source,
            header=self.header + functions,
        )


CUDA = Dialect(
    "cuda",
    1024,
    r"""
#define FUNCTION __device__ inline
#define SHARED __shared__
#define SHARED_POINTER(T) T*
#define DEVICE
#define BARRIER() __syncthreads()
#define DEVICE_BARRIER() __syncthreads()
#define LANE_XOR(x, step) __shfl_xor_sync(0xffffffff, x, step)
#define LANE_UP(x, step) __shfl_up_sync(0xffffffff, x, step)
#define LANE_READ(x, lane) __shfl_sync(0xffffffff, x, lane)
#define BITS_OF(x) __float_as_uint(x)
#define FLOAT_OF(x) __uint_as_float(x)
#define GROUP blockIdx
#define GROUPS gridDim
#define THREAD int(threadIdx.x)
#define EXP(x) __expf(x)
#define WORD unsigned int
""",
)

METAL = Dialect(
    "metal",
    512,
    r"""
#define FUNCTION inline
#define SHARED threadgroup
#define SHARED_POINTER(T) threadgroup T*
#define DEVICE device
#define BARRIER() threadgroup_barrier(metal::mem_flags::mem_threadgroup)
#define DEVICE_BARRIER() threadgroup_barrier(metal::mem_flags::mem_threadgroup | metal::mem_flags::mem_device)
#define LANE_XOR(x, step) metal::simd_shuffle_xor(x, ushort(step))
#define LANE_UP(x, step) metal::simd_shuffle_up(x, ushort(step))
#define LANE_READ(x, lane) metal::simd_shuffle(x, ushort(lane))
#define BITS_OF(x) as_type<uint>(x)
#define FLOAT_OF(x) as_type<float>(x)
#define GROUP group_position
#define GROUPS group_count
#define THREAD thread_number
#define EXP(x) metal::exp(x)
#define WORD uint
""",
    r"""
    const uint3 group_position = threadgroup_position_in_grid, group_count = threadgroups_per_grid;
    const int thread_number = int(thread_position_in_threadgroup.x);
    (void)group_position;
    (void)group_count;
""",
)


def dialect() -> Dialect:
    """That of this machine's GPU."""
    return CUDA if mx.cuda.is_available() else METAL
