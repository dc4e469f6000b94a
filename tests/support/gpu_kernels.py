"""`mx.fast.cuda_kernel` and `mx.fast.metal_kernel` for a machine without a GPU: the same sources, compiled by g++.

A group's threads run as fibres on one CPU thread and wait for each other where the source says so, in an order drawn
from a seed. Metal's function is the very text that MLX makes of a kernel, which it also does without Metal while a
function is exported; CUDA's is put together here as MLX does it. Metal's address spaces are taken away unchecked.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs
import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

Language = Literal["cuda", "metal"]
Template = Sequence[tuple[str, Any]]
HAS_COMPILER = shutil.which("g++") is not None
_SHIM = Path(__file__).with_name("gpu_shim")
_FLAGS = ("-std=c++20", "-O1", "-fPIC", "-Wno-attributes", f"-I{_SHIM}")
_TYPES = {
    mx.float32: "float",
    mx.bfloat16: "machine::bfloat16",
    mx.float16: "machine::float16",
    mx.uint32: "uint32_t",
    mx.int32: "int32_t",
    mx.bool_: "bool",
}
_PLACES = {
    "threadgroup_position_in_grid": "machine::group()",
    "threadgroups_per_grid": "machine::groups()",
    "thread_position_in_threadgroup": "machine::member()",
}
_metal_kernel = mx.fast.metal_kernel


class KernelFailure(Exception):
    """A kernel did what a GPU does not define."""


@attrs.define
class Gpu:
    """A machine that understands one language. `folder` is for what is compiled."""

    language: Language
    folder: Path
    seed: int = 0

    def kernel(self, **parts: Any) -> Callable[..., list[mx.array]]:
        """In place of `mx.fast.cuda_kernel` and `metal_kernel`."""
        return functools.partial(self._run, parts)

    def _run(
        self,
        parts: dict[str, Any],
        *,
        inputs: Sequence[mx.array],
        template: Template,
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        output_shapes: Sequence[tuple[int, ...]],
        output_dtypes: Sequence[mx.Dtype],
    ) -> list[mx.array]:
        mx.eval(list(inputs))
        call = _Call(parts, inputs, template, output_dtypes)
        given = [_memory(each) for each in inputs]
        buffers = [_Buffer(each) for each in given]
        shapes = [_Buffer(np.array([*each.shape, *[0] * (10 - each.ndim)], dtype=np.int32)) for each in inputs]
        outputs = [_Buffer(_fresh(shape, dtype)) for shape, dtype in zip(output_shapes, output_dtypes, strict=True)]
        placed: list[_Buffer] = []
        for name, buffer, shape in zip(parts["input_names"], buffers, shapes, strict=True):
            placed += [buffer, shape] if f"{name}_shape" in parts["source"] else [buffer]
        placed += outputs
        pointers = (ctypes.c_void_p * len(placed))(*(each.address for each in placed))
        launch = _library(call.text(self.language), self.folder)
        failure = launch((ctypes.c_uint32 * 6)(*grid, *threadgroup), self.seed, pointers)
        if failure is not None:
            raise KernelFailure(failure.decode())
        if not all(each.is_whole for each in placed):
            raise KernelFailure("something was written beside an array")
        for memory, buffer in zip(given, buffers, strict=True):
            # A kernel may have written to what it was given.
            ctypes.memmove(memory.ctypes.data, buffer.address, memory.nbytes)
        return [
            mx.array(each.array).view(dtype) if dtype == mx.bfloat16 else mx.array(each.array)
            for each, dtype in zip(outputs, output_dtypes, strict=True)
        ]


class _Buffer:
    """A copy of an array where a GPU would have it: aligned, with bytes around it that nobody may write."""

    _EDGE = 256

    def __init__(self, array: NDArray[Any]) -> None:
        raw = np.full(array.nbytes + 3 * self._EDGE, 0xA5, dtype=np.uint8)
        begin = self._EDGE + -raw.ctypes.data % self._EDGE
        self.array = raw[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
        self.array[...] = array
        self._edges = (raw[:begin], raw[begin + array.nbytes :])

    @property
    def address(self) -> int:
        return int(self.array.ctypes.data)

    @property
    def is_whole(self) -> bool:
        return all(bool((edge == 0xA5).all()) for edge in self._edges)


@attrs.frozen
class _Call:
    """A kernel for arguments of certain types."""

    parts: dict[str, Any]
    inputs: Sequence[mx.array]
    template: Template
    output_dtypes: Sequence[mx.Dtype]

    def text(self, language: Language) -> str:
        """A source file with the kernel and with what `_library` calls."""
        function, instance, places = self._cuda() if language == "cuda" else self._metal()
        arguments: list[str] = []
        for name, array in zip(self.parts["input_names"], self.inputs, strict=True):
            arguments.append(f"(const {_TYPES[array.dtype]}*)at[{len(arguments)}]")
            if f"{name}_shape" in self.parts["source"]:
                what = "*(const Shape*)" if language == "cuda" else "(const int*)"
                arguments.append(f"{what}at[{len(arguments)}]")
        for dtype in self.output_dtypes:
            arguments.append(f"({_TYPES[dtype]}*)at[{len(arguments)}]")
        return f"""#include "{language}.hpp"
{function}
static void body(void* pointers) {{
  void** at = (void**)pointers;
  {instance}({", ".join([*arguments, *places])});
}}
extern "C" const char* launch(const uint32_t* sizes, unsigned seed, void** pointers) {{
  return machine::launch({{sizes[0], sizes[1], sizes[2]}}, {{sizes[3], sizes[4], sizes[5]}}, seed, body, pointers);
}}
"""

    def _cuda(self) -> tuple[str, str, list[str]]:
        parameters = []
        for name, array in zip(self.parts["input_names"], self.inputs, strict=True):
            parameters.append(f"const {_TYPES[array.dtype]}* {name}")
            if f"{name}_shape" in self.parts["source"]:
                parameters.append(f"const __grid_constant__ Shape {name}_shape")
        for name, dtype in zip(self.parts["output_names"], self.output_dtypes, strict=True):
            parameters.append(f"{_TYPES[dtype]}* {name}")
        constants = "".join(_constant(name, value) for name, value in self.template)
        header, source = self.parts["header"], self.parts["source"]
        return f"{header}\n__global__ void kernel({', '.join(parameters)}) {{\n{constants}{source}\n}}\n", "kernel", []

    def _metal(self) -> tuple[str, str, list[str]]:
        text = _metal_text(self)
        # The one use of an address space that is no mere qualifier: what the threads of a group share.
        text = text.replace("#define SHARED threadgroup\n", "#define SHARED static\n")
        instance = re.search(r"decltype\((.*)\) \1;", text)
        assert instance is not None
        return text, instance[1], [_PLACES[name] for name in re.findall(r"uint3 (\w+) \[\[\1\]\]", text)]


def _constant(name: str, value: Any) -> str:
    if isinstance(value, mx.Dtype):
        return f"using {name} = {_TYPES[value]};\n"
    return f"constexpr {'bool' if isinstance(value, bool) else 'int'} {name} = {int(value)};\n"


def _metal_text(call: _Call) -> str:
    """What MLX would hand to Metal's compiler."""
    kernel: Any = _metal_kernel(**call.parts)

    def function(*inputs: mx.array) -> list[mx.array]:
        made: list[mx.array] = kernel(
            inputs=list(inputs),
            template=call.template,
            grid=(1, 1, 1),
            threadgroup=(1, 1, 1),
            output_shapes=[(1,)] * len(call.output_dtypes),
            output_dtypes=call.output_dtypes,
            verbose=True,
        )
        return made

    sys.stdout.flush()
    standard_output = os.dup(1)
    with tempfile.TemporaryFile() as printed, tempfile.NamedTemporaryFile(suffix=".mlxfn") as exported:
        os.dup2(printed.fileno(), 1)
        try:
            mx.export_function(exported.name, function, *call.inputs)
        finally:
            os.dup2(standard_output, 1)
            os.close(standard_output)
        printed.seek(0)
        return printed.read().decode().split("```\n")[1]


def _memory(array: mx.array) -> NDArray[Any]:
    """The array's own memory if it is contiguous, as for a GPU."""
    raw = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    mx.eval(raw)
    return np.ascontiguousarray(np.array(raw, copy=False))


def _fresh(shape: tuple[int, ...], dtype: mx.Dtype) -> NDArray[Any]:
    """An output that shows where nothing was written to it: NaN, or a large number."""
    if dtype == mx.bfloat16:
        return np.full(shape, 0x7FFF, dtype=np.uint16)
    if dtype in (mx.float32, mx.float16):
        return np.full(shape, np.nan, np.float32 if dtype == mx.float32 else np.float16)
    return np.full(shape, 0xDEADBEEF, np.uint32).view(np.int32 if dtype == mx.int32 else np.uint32)


@functools.cache
def _library(text: str, folder: Path) -> Any:
    machine = folder / "machine.o"
    if not machine.exists():
        _compile("-c", _SHIM / "machine.cpp", "-o", machine)
    source = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.cpp"
    source.write_text(text)
    _compile("-shared", source, machine, "-o", source.with_suffix(".so"))
    launch = ctypes.CDLL(str(source.with_suffix(".so"))).launch
    launch.restype = ctypes.c_char_p
    return launch


def _compile(*arguments: str | Path) -> None:
    done = subprocess.run(["g++", *_FLAGS, *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise KernelFailure(done.stderr)
