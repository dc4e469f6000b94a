"""What drawing the tokens of a full batch costs: by MLX's operations and by the kernel, beside a whole step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import mlx.core as mx

from mlx_serving.actors.generation.mlx_engine import draw_kernel
from mlx_serving.actors.generation.mlx_engine.device import is_cpu
from mlx_serving.actors.generation.mlx_engine.sampling import RowSampling, Sampler
from tools.bench.inside.models import Subject
from tools.bench.inside.sizes import InsideSize
from tools.bench.inside.stage import Stage, mixed

_DRAWS = 20
"""Set going together, as in a pipeline."""


def sampler(subject: Subject, size: InsideSize) -> dict[str, Any]:
    """Seconds of a draw of rows with mixed parameters each way, and of a step that draws as the engine chooses.

    Where the kernel does not run there is no "kernel" among them.
    """
    rows = size.rows[-1]
    found: dict[str, list[float]] = {"operations": [], "kernel": [], "step": []}
    for repetition in range(size.repetitions + 1):
        seconds = {name: _draw_seconds(subject, rows, name) for name in ("operations", "kernel")}
        seconds["step"] = _step_seconds(subject, size, rows)
        for name, each in seconds.items():
            if repetition and each is not None:
                found[name].append(each)
    return {
        "rows": rows,
        "vocabulary": subject.vocab_size,
        "seconds": {key: each for key, each in found.items() if each},
    }


def _draw_seconds(subject: Subject, rows: int, way: str) -> float | None:
    dtype = mx.float32 if is_cpu() else mx.bfloat16
    logits = (mx.random.normal((rows, subject.vocab_size), key=mx.random.key(rows)) * 3).astype(dtype)
    with _drawing(way) as runs:
        if not runs:
            return None
        draw = Sampler([RowSampling.begin(each, 0, [1, 2, 3]) for each in mixed(rows)])
        mx.eval(logits, draw(logits))
        started = monotonic()
        mx.eval([draw(logits) for _ in range(_DRAWS)])
        return (monotonic() - started) / _DRAWS


@contextmanager
def _drawing(way: str) -> Iterator[bool]:
    """Choose the way; whether it runs here."""
    draw_kernel.choose("on" if way == "kernel" else "off")
    try:
        yield (draw_kernel.way() != "operations") is (way == "kernel")
    finally:
        draw_kernel.choose("auto")


def _step_seconds(subject: Subject, size: InsideSize, rows: int) -> float:
    with subject.engine() as engine:
        stage = Stage(engine)
        streams = [
            stage.submit(subject.ids(size.prompt_tokens, row), 1 << 20, sampling)
            for row, sampling in enumerate(mixed(rows))
        ]
        stage.run_until_tokens(streams, 4)
        started = monotonic()
        for _ in range(size.masked_steps):
            stage.step()
        seconds = (monotonic() - started) / size.masked_steps
        stage.abandon()
        return seconds
