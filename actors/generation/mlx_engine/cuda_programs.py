"""Kernels for CUDA, compiled by NVRTC from nothing but their own source.

MLX puts headers before a kernel that take NVRTC three seconds each time, and an engine has a dozen kernels; without
them it takes a tenth of a second. MLX runs what comes out as `mx.fast.precompiled_cuda_kernel`. Where that or NVRTC is
not to be had, or does not give what it should, `kernel` gives MLX's own.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
from collections.abc import Sequence
from typing import Any

import attrs
import mlx.core as mx

from mlx_serving.actors.generation.mlx_engine.device import back_end

_log = logging.getLogger(__name__)
_LIBRARIES = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")
_TYPES = {
    mx.bfloat16: "bfloat16",
    mx.float16: "float16",
    mx.float32: "float",
    mx.int32: "int",
    mx.uint32: "unsigned int",
    mx.bool_: "bool",
}
_EASILY_RUN = 256
"""Threads of a group that may have as many registers each as there can be."""
_PREAMBLE = r"""
#define INFINITY __int_as_float(0x7f800000)

struct bfloat16 {
    unsigned short bits;
    bfloat16() = default;
    __device__ explicit bfloat16(float x) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x)); }
    __device__ explicit operator float() const { return __uint_as_float((unsigned int)bits << 16); }
};

struct float16 {
    unsigned short bits;
    float16() = default;
    __device__ explicit float16(float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x)); }
    __device__ explicit operator float() const {
        float x;
        asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
        return x;
    }
};
"""


class CompilationFailed(Exception):
    """NVRTC does not take a kernel's source."""


@attrs.define(eq=False)
class Program:
    """A kernel's parts, as `mx.fast.cuda_kernel` takes them; called as what that returns."""

    name: str
    input_names: Sequence[str]
    output_names: Sequence[str]
    source: str
    header: str
    architecture: str
    _tells_shape: list[bool] = attrs.field(init=False)
    """Whether the source asks for the sizes of each input."""
    _compiled: dict[Any, tuple[str, bytes]] = attrs.field(factory=dict, init=False)
    """Name and machine code, by the types and constants they are for."""

    def __attrs_post_init__(self) -> None:
        self._tells_shape = [f"{name}_shape" in self.source for name in self.input_names]

    def __call__(
        self,
        *,
        inputs: Sequence[mx.array],
        template: Sequence[tuple[str, Any]],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        output_shapes: Sequence[tuple[int, ...]],
        output_dtypes: Sequence[mx.Dtype],
    ) -> list[mx.array]:
        kinds = tuple((each.dtype, each.ndim) for each in inputs)
        threads = threadgroup[0] * threadgroup[1] * threadgroup[2]
        key = (kinds, tuple(template), tuple(output_dtypes), threads)
        if key not in self._compiled:
            text = self.text(kinds, template, output_dtypes, threads)
            own_name = f"{self.name}_{hashlib.blake2s(text.encode(), digest_size=8).hexdigest()}"
            self._compiled[key] = own_name, compiled(text.replace(_NAME, own_name), self.architecture)
        name, code = self._compiled[key]
        sizes = [
            size for each, is_wanted in zip(inputs, self._tells_shape, strict=True) if is_wanted for size in each.shape
        ]
        return mx.fast.precompiled_cuda_kernel(
            name=name,
            compiled_source=code,
            inputs=list(inputs),
            output_shapes=list(output_shapes),
            output_dtypes=list(output_dtypes),
            scalars=sizes,
            grid=grid,
            threadgroup=threadgroup,
            ensure_row_contiguous=True,
        )

    def text(
        self,
        inputs: Sequence[tuple[mx.Dtype, int]],
        template: Sequence[tuple[str, Any]],
        output_dtypes: Sequence[mx.Dtype],
        threads: int,
    ) -> str:
        """The whole source for inputs of these types and numbers of axes, and groups of so many threads.

        The kernel's name is still to be put in.
        """
        parameters = [
            f"const {_TYPES[dtype]}* {name}" for (dtype, _), name in zip(inputs, self.input_names, strict=True)
        ]
        parameters += [f"{_TYPES[dtype]}* {name}" for dtype, name in zip(output_dtypes, self.output_names, strict=True)]
        constants = "".join(_constant(name, value) for name, value in template)
        for (_, axes), name, is_wanted in zip(inputs, self.input_names, self._tells_shape, strict=True):
            if is_wanted:
                sizes = [f"{name}_size_{axis}" for axis in range(axes)]
                parameters += [f"int {size}" for size in sizes]
                constants += f"const int {name}_shape[] = {{{', '.join(sizes)}}};\n"
        # Registers of a multiprocessor are shared by the threads of a group: many of these have to do with few each.
        bounds = f" __launch_bounds__({threads})" if threads > _EASILY_RUN else ""
        head = f'extern "C" __global__ void{bounds} {_NAME}({", ".join(parameters)})'
        function = f"{head} {{\n{constants}{self.source}\n}}\n"
        return _PREAMBLE + self.header + function


_NAME = "KERNEL_NAME"


def _constant(name: str, value: Any) -> str:
    if isinstance(value, mx.Dtype):
        return f"using {name} = {_TYPES[value]};\n"
    return f"constexpr {'bool' if isinstance(value, bool) else 'int'} {name} = {int(value)};\n"


def prepare() -> None:
    """Find out whether programs run here: that takes an evaluation, which must not fall into the tracing of another."""
    architecture()


def kernel(name: str, input_names: Sequence[str], output_names: Sequence[str], source: str, header: str) -> Any:
    """In place of `mx.fast.cuda_kernel`."""
    chip = architecture()
    if chip is None:
        return mx.fast.cuda_kernel(
            name=name, input_names=input_names, output_names=output_names, source=source, header=header
        )
    return Program(name, input_names, output_names, source, header, chip)


@functools.cache
def architecture() -> str | None:
    """That of the device, if programs run on it."""
    if back_end() != "cuda":
        return None
    try:
        about = mx.device_info()
        found = f"sm_{about['compute_capability_major']}{about['compute_capability_minor']}"
        if _runs(found):
            return found
        _log.warning("a kernel compiled without MLX's headers computed something else; kernels take longer to compile")
    except Exception:
        _log.warning("kernels take longer to compile: NVRTC or MLX does not take them", exc_info=True)
    return None


def _runs(architecture: str) -> bool:
    """Whether a small kernel computes what it should."""
    source = "const int i = blockIdx.x * 32 + threadIdx.x; y[i] = T(float(x[i]) * x_shape[1] + COUNT);"
    program = Program("trial", ["x"], ["y"], source, "", architecture)
    x = mx.arange(64).reshape(2, 32).astype(mx.bfloat16)
    (y,) = program(
        inputs=[x],
        template=[("T", mx.bfloat16), ("COUNT", 3)],
        grid=(64, 1, 1),
        threadgroup=(32, 1, 1),
        output_shapes=[(2, 32)],
        output_dtypes=[mx.bfloat16],
    )
    return bool(mx.array_equal(y, (x.astype(mx.float32) * 32 + 3).astype(mx.bfloat16)).item())


def compiled(source: str, architecture: str) -> bytes:
    """Machine code (a cubin) for an architecture such as sm_90. Raises CompilationFailed, and OSError without NVRTC."""
    nvrtc = _library()
    program = ctypes.c_void_p()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None))
    try:
        options = (ctypes.c_char_p * 2)(f"--gpu-architecture={architecture}".encode(), b"--std=c++17")
        if nvrtc.nvrtcCompileProgram(program, len(options), options):
            raise CompilationFailed(_bytes_of(program, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog).decode())
        return _bytes_of(program, nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _bytes_of(program: ctypes.c_void_p, size_of: Any, copy: Any) -> bytes:
    size = ctypes.c_size_t()
    _check(size_of(program, ctypes.byref(size)))
    found = ctypes.create_string_buffer(size.value)
    _check(copy(program, found))
    return found.raw


def _check(status: int) -> None:
    if status:
        raise CompilationFailed(f"NVRTC ended with status {status}")


@functools.cache
def _library() -> Any:
    """NVRTC, which MLX for CUDA brings along. Raises OSError where there is none."""
    for name in _LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise OSError(f"none of {', '.join(_LIBRARIES)} is here")
