"""Programs for CUDA: what is compiled, what they are given, and that NVRTC takes our kernels where it is installed."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from mlx_serving.actors.generation.mlx_engine import (
    attention_kernels,
    chunk_attention,
    cuda_programs,
    draw_kernel,
    product_kernels,
    tensor_cores,
)
from mlx_serving.actors.generation.mlx_engine.cuda_programs import CompilationFailed, Program, compiled
from mlx_serving.actors.generation.mlx_engine.kernel_dialects import CUDA

SOURCE = "y[0] = T(float(x[0]) * x_shape[1] + COUNT);"
_MULTIPROCESSOR_REGISTERS = 65536
TEMPLATE = [("T", mx.bfloat16), ("COUNT", 3), ("IS_ODD", True)]


def _program(source: str, functions: str = "") -> Program:
    return Program("name", ["x", "z"], ["y"], CUDA.prologue + source, CUDA.header + functions, "sm_90")


def _has_nvrtc() -> bool:
    try:
        cuda_programs._library()
    except OSError:
        return False
    return True


needs_nvrtc = pytest.mark.skipif(not _has_nvrtc(), reason="NVRTC is not installed")


def test_a_source_declares_types_constants_and_the_sizes_it_asks_for() -> None:
    text = _program(SOURCE).text([(mx.bfloat16, 2), (mx.uint32, 1)], TEMPLATE, [mx.bfloat16], 512)
    assert "void __launch_bounds__(512) KERNEL_NAME(" in text
    assert "(const bfloat16* x, const unsigned int* z, bfloat16* y, int x_size_0, int x_size_1)" in text
    assert "using T = bfloat16;" in text
    assert "constexpr int COUNT = 3;" in text
    assert "constexpr bool IS_ODD = 1;" in text
    assert "const int x_shape[] = {x_size_0, x_size_1};" in text


def test_a_program_is_compiled_once_and_given_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    sources, calls = [], []

    def compile_it(source: str, architecture: str) -> bytes:
        sources.append((source, architecture))
        return b"machine code"

    def run(**given: Any) -> list[mx.array]:
        calls.append(given)
        return [mx.zeros(1)]

    monkeypatch.setattr(cuda_programs, "compiled", compile_it)
    monkeypatch.setattr(mx.fast, "precompiled_cuda_kernel", run)
    program = _program(SOURCE)
    for rows in (2, 5):
        program(
            inputs=[mx.zeros((rows, 7), dtype=mx.bfloat16), mx.zeros(1, dtype=mx.uint32)],
            template=TEMPLATE,
            grid=(32, 1, 1),
            threadgroup=(32, 1, 1),
            output_shapes=[(1,)],
            output_dtypes=[mx.bfloat16],
        )
    ((source, architecture),) = sources
    assert architecture == "sm_90"
    assert f"void {calls[0]['name']}(" in source
    assert calls[0]["name"] == calls[1]["name"]
    assert [each["scalars"] for each in calls] == [[2, 7], [5, 7]]
    assert {each["compiled_source"] for each in calls} == {b"machine code"}


def test_without_cuda_kernels_are_mlxs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(mx.fast, "cuda_kernel", lambda **parts: given.append(parts))
    monkeypatch.setattr(cuda_programs, "architecture", lambda: None)
    CUDA.kernel("name", ["x"], ["y"], SOURCE, "int f();")
    assert given == [
        {
            "name": "name",
            "input_names": ["x"],
            "output_names": ["y"],
            "source": CUDA.prologue + SOURCE,
            "header": CUDA.header + "int f();",
        }
    ]


@pytest.mark.parametrize("runs", [True, False, None])
def test_programs_are_used_only_where_one_was_right(monkeypatch: pytest.MonkeyPatch, runs: bool | None) -> None:
    def trial(architecture: str) -> bool:
        if runs is None:
            raise CompilationFailed("no such header")
        return runs

    monkeypatch.setattr(cuda_programs, "back_end", lambda: "cuda")
    monkeypatch.setattr(mx, "device_info", lambda: {"compute_capability_major": 8, "compute_capability_minor": 9})
    monkeypatch.setattr(cuda_programs, "_runs", trial)
    cuda_programs.architecture.cache_clear()
    try:
        assert cuda_programs.architecture() == ("sm_89" if runs else None)
    finally:
        cuda_programs.architecture.cache_clear()


def _registers(code: bytes) -> int:
    """What a thread of the one kernel of a cubin takes: its attribute EIATTR_REGCOUNT has a symbol and the number."""
    mark = b"\x04\x2f\x08\x00"
    at = code.index(mark) + len(mark) + 4
    return int.from_bytes(code[at : at + 4], "little")


@needs_nvrtc
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float32])
@pytest.mark.parametrize("is_masked", [True, False])
def test_the_registers_of_a_group_that_draws_suffice(dtype: mx.Dtype, is_masked: bool) -> None:
    names = ["logits", "masks", "floats", "limits", "factors", "bias", "counts", "seen"]
    kinds = [(dtype, 2), (mx.uint32, 2), (mx.float32, 2), (mx.int32, 1), *[(mx.float32, 2)] * 3, (mx.bool_, 2)]
    template = [("T", dtype), ("V", 128256), ("COUNT", CUDA.threads), ("MASKED", is_masked)]
    functions = CUDA.header + draw_kernel._FUNCTIONS
    for source, inputs, outputs in ((draw_kernel._PLAIN, 4, 1), (draw_kernel._ADJUSTED, 8, 2)):
        said = ["tokens", "adjusted"][:outputs]
        program = Program("name", names[:inputs], said, source + draw_kernel._SOURCE, functions, "sm_90")
        text = program.text(kinds[:inputs], template, [mx.int32, mx.float32][:outputs], CUDA.threads)
        assert _registers(compiled(text, "sm_90")) * CUDA.threads <= _MULTIPROCESSOR_REGISTERS


@needs_nvrtc
@pytest.mark.parametrize(("size", "share"), [(64, 7), (128, 4), (128, 8), (256, 16)])
def test_the_registers_of_a_group_that_attends_suffice(size: int, share: int) -> None:
    threads = CUDA.threads // 64 * 32
    constants = [("T", mx.bfloat16), ("D", size), ("G", share), ("O", mx.float32), ("WARPS", CUDA.threads // 64)]
    digits = [(mx.uint32, 4), (mx.bfloat16, 4), (mx.bfloat16, 4)]
    for pieces, sides, form in (
        (attention_kernels._PLAIN, [(mx.bfloat16, 4)] * 4, []),
        (attention_kernels._QUANTISED, digits * 4, [("GROUP_SIZE", 64), ("BITS", 8)]),
    ):
        source = attention_kernels._BEGINNING + pieces + attention_kernels._PARTS
        names = attention_kernels._inputs(bool(form))
        program = Program("name", names, ["sums", "stats"], source, CUDA.header, "sm_90")
        kinds = [(mx.bfloat16, 4), *sides, (mx.int32, 1), (mx.float32, 1)]
        text = program.text(kinds, [*constants, *form], [mx.float32, mx.float32], threads)
        assert _registers(compiled(text, "sm_90")) * threads <= _MULTIPROCESSOR_REGISTERS


@needs_nvrtc
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_nvrtc_takes_kernels(dtype: mx.Dtype) -> None:
    product = product_kernels._BEGINNING + product_kernels._DENSE + product_kernels._END
    shape = [("WARPS", 4), ("SPAN", 1), ("OUTPUT_TILES", 2), ("ROW_TILES", 2), ("BIASED", True), ("AXES", 2)]
    dense = Program("name", ["x", "weights", "bias"], ["y"], product, CUDA.header + tensor_cores.FUNCTIONS, "sm_80")
    template = [("T", dtype), ("HALF", dtype == mx.float16), *shape]
    assert compiled(dense.text([(dtype, 2), (dtype, 2), (dtype, 1)], template, [dtype], 128), "sm_80")
    product = product_kernels._BEGINNING + product_kernels._QUANTIZED + product_kernels._END
    inputs = ["x", "weights", "scales", "offsets", "bias"]
    functions = CUDA.header + tensor_cores.FUNCTIONS + product_kernels._DIGITS
    quantized = Program("name", inputs, ["y"], product, functions, "sm_80")
    kinds = [(dtype, 2), (mx.uint32, 2), (dtype, 2), (dtype, 2), (dtype, 1)]
    assert compiled(quantized.text(kinds, [*template, ("GROUP_SIZE", 64)], [dtype], 128), "sm_80")
    inputs = ["queries", "keys", "values", "slab_keys", "slab_values", "lengths", "scale"]
    attention = attention_kernels._BEGINNING + attention_kernels._PLAIN + attention_kernels._PARTS
    parts = Program("name", inputs, ["sums", "stats"], attention, CUDA.header, "sm_80")
    constants = [("T", dtype), ("D", 64), ("G", 3), ("O", mx.float32), ("WARPS", 16)]
    kinds = [*[(dtype, 4)] * 5, (mx.int32, 1), (mx.float32, 1)]
    assert compiled(parts.text(kinds, constants, [mx.float32, mx.float32], 512), "sm_80")
    chunk = Program("name", inputs, ["out"], chunk_attention._SOURCE, CUDA.header + tensor_cores.FUNCTIONS, "sm_80")
    template = [("T", dtype), ("HALF", dtype == mx.float16), ("D", 128), ("G", 4), ("WARPS", 8), ("IS_SPLIT", True)]
    assert compiled(chunk.text(kinds, template, [dtype], 256), "sm_80")
    attention = attention_kernels._BEGINNING + attention_kernels._QUANTISED + attention_kernels._PARTS
    names = attention_kernels._inputs(is_quantised=True)
    parts = Program("name", names, ["sums", "stats"], attention, CUDA.header, "sm_80")
    kinds = [(dtype, 4), *[(mx.uint32, 4), (dtype, 4), (dtype, 4)] * 4, (mx.int32, 1), (mx.float32, 1)]
    for bits in (4, 8):
        text = parts.text(kinds, [*constants, ("GROUP_SIZE", 32), ("BITS", bits)], [mx.float32, mx.float32], 512)
        assert compiled(text, "sm_80")
    join = Program("name", ["sums", "stats"], ["out"], attention_kernels._JOIN, CUDA.header, "sm_80")
    assert compiled(join.text([(mx.float32, 4), (mx.float32, 4)], constants[:2], [dtype], 64), "sm_80")
    names = ["logits", "masks", "floats", "limits"]
    template = [("T", dtype), ("V", 1000), ("COUNT", 1024), ("MASKED", True)]
    kinds = [(dtype, 2), (mx.uint32, 2), (mx.float32, 2), (mx.int32, 1)]
    functions = CUDA.header + draw_kernel._FUNCTIONS
    draw = Program("name", names, ["tokens"], draw_kernel._PLAIN + draw_kernel._SOURCE, functions, "sm_80")
    assert compiled(draw.text(kinds, template, [mx.int32], 1024), "sm_80")
    names += ["factors", "bias", "counts", "seen"]
    source = draw_kernel._ADJUSTED + draw_kernel._SOURCE
    draw = Program("name", names, ["tokens", "adjusted"], source, functions, "sm_80")
    kinds += [(mx.float32, 2), (mx.float32, 2), (mx.float32, 2), (mx.bool_, 2)]
    assert compiled(draw.text(kinds, template, [mx.int32, mx.float32], 1024), "sm_80")


@needs_nvrtc
def test_what_nvrtc_does_not_take_is_told() -> None:
    text = _program("nonsense").text([(mx.bfloat16, 2), (mx.uint32, 1)], TEMPLATE, [mx.bfloat16], 32)
    with pytest.raises(CompilationFailed, match="nonsense"):
        compiled(text, "sm_90")
