"""Decode speed of one row and of many, with each switch on and off, beside mlx_lm in the same process."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import mlx.core as mx

from mlx_serving.actors.generation.mlx_engine import loading
from mlx_serving.actors.generation.mlx_engine.device import is_cpu
from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine
from mlx_serving.actors.messages.values import Sampling
from mlx_serving.config.schema import MetalOptimizations
from tools.bench.compare import judge
from tools.bench.inside import rivals
from tools.bench.inside.models import Subject
from tools.bench.inside.sizes import InsideSize
from tools.bench.inside.stage import GREEDY, Stage, joint_rate, mixed

OURS, THEIRS = "mlx-serving", "mlx_lm"
_ROWS_WITHOUT_KERNELS = 8
"""More of them would take minutes without."""


@attrs.frozen
class Variant:
    """The engine with one switch turned. `compiles`: MLX may fuse operations."""

    settings: dict[str, Any] = attrs.field(factory=dict)
    compiles: bool = True


def variants(rows: int) -> dict[str, Variant]:
    """The engine with each switch turned that concerns this back end."""
    found = {
        "memory_pool off": Variant({"metal_optimizations": MetalOptimizations(memory_pool=False)}),
        "blit_queue off": Variant({"metal_optimizations": MetalOptimizations(blit_queue=False)}),
        "command_buffer_ring 1": Variant({"metal_optimizations": MetalOptimizations(command_buffer_ring=1)}),
        "command_buffer_ring 3": Variant({"metal_optimizations": MetalOptimizations(command_buffer_ring=3)}),
        "in_place_attention off": Variant({"in_place_attention": "off"}),
        "sampler_kernel off": Variant({"sampler_kernel": "off"}),
        "nothing compiled": Variant({"compile_steps": "off"}, compiles=False),
    }
    if not is_cpu():
        found["dequantize off"] = Variant({"dequantize": "off"})
    elif rows <= _ROWS_WITHOUT_KERNELS:
        found["native_kernels off"] = Variant({"native_kernels": False})
    if rows > 1:
        found["kv_type 8bit"] = Variant({"kv_type": "8bit"})
    return found


def decode(subject: Subject, size: InsideSize) -> dict[str, Any]:
    """For one row and each number of rows: rates of everybody in every repetition, and ratios of ours to each."""
    result: dict[str, Any] = {"prompt_tokens": size.prompt_tokens, "tokens": size.tokens}
    result["1"] = _contest(subject, size, [GREEDY])
    for rows in size.greedy_rows:
        result[f"{rows} greedy"] = _contest(subject, size, [GREEDY] * rows, switches=False)
    for rows in size.rows:
        result[f"{rows} mixed"] = _contest(subject, size, mixed(rows))
    result["a long row among short ones"] = _long_neighbour(subject, size)
    return result


def _contest(subject: Subject, size: InsideSize, samplings: list[Sampling], switches: bool = True) -> dict[str, Any]:
    """Each other one takes turns with the engine as it is, so that a drift of the machine hits both."""
    prompts = [subject.ids(size.prompt_tokens, row) for row in range(len(samplings))]
    found: dict[str, Any] = {}
    with subject.engine() as engine:

        def ours() -> float:
            return _rate(engine, prompts, size.tokens, samplings)

        def theirs() -> float:
            return _their_rate(subject, prompts, size.tokens, samplings)

        pairs = _pairs(ours, theirs, size.repetitions)
        found |= judge({OURS: pairs[0], THEIRS: pairs[1]}, OURS)
        for name, variant in variants(len(prompts)).items() if switches else ():
            with subject.engine(**variant.settings) as other, _compiling(variant.compiles):
                switched = functools.partial(_rate, other, prompts, size.tokens, samplings)
                pairs = _pairs(ours, switched, size.switch_repetitions)
            found[name] = judge({OURS: pairs[0], name: pairs[1]}, OURS)[name]
    return found


def _pairs(first: Callable[[], float], second: Callable[[], float], count: int) -> tuple[list[float], list[float]]:
    """Rates of both in turn; the first pair warms up."""
    pairs = [(first(), second()) for _ in range(count + 1)][1:]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _rate(engine: MlxEngine, prompts: list[list[int]], tokens: int, samplings: list[Sampling]) -> float:
    loading.prepare_device(engine._settings)  # what is chosen for the process is as the engine loaded last wants it
    stage = Stage(engine)
    streams = [stage.submit(prompt, tokens, each) for prompt, each in zip(prompts, samplings, strict=True)]
    stage.run()
    return streams[0].rate if len(streams) == 1 else joint_rate([stream.times for stream in streams])


def _their_rate(subject: Subject, prompts: list[list[int]], tokens: int, samplings: list[Sampling]) -> float:
    if len(prompts) == 1:
        return rivals.single_rate(subject.reference, prompts[0], tokens)
    return rivals.batch_rate(subject.reference, prompts, tokens, samplings)


def _long_neighbour(subject: Subject, size: InsideSize) -> dict[str, Any]:
    """Tokens a second of seven short rows beside one more short one, and beside a long one."""
    found = []
    with subject.engine() as engine:
        for length in (size.prompt_tokens, size.long_prompt_tokens):
            stage = Stage(engine)
            long = stage.submit(subject.ids(length, 99), 16 * size.tokens)
            stage.run_until_tokens([long], 2)
            # The first goes on until the last has its tokens too.
            short = [stage.submit(subject.ids(size.prompt_tokens, row), 16 * size.tokens) for row in range(7)]
            stage.run_until_tokens(short, size.tokens)
            found.append(joint_rate([stream.times for stream in short]))
            stage.abandon()
    return {"long_prompt_tokens": size.long_prompt_tokens, "beside_short": found[0], "beside_long": found[1]}


@contextmanager
def _compiling(wanted: bool) -> Iterator[None]:
    if not wanted:
        mx.disable_compile()
    try:
        yield
    finally:
        mx.enable_compile()
