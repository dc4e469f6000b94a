"""Decode and prefill speed of one variant of the CPU back end, in this process.

MLX as its wheel is, this engine without its native kernels, or this engine as it is.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any

from mlx_serving.native.cores import usable_cores
from mlx_serving.native.kernels import operations
from tools.bench.bandwidth import bandwidth
from tools.bench.inside import rivals
from tools.bench.inside.models import Subject
from tools.bench.inside.stage import GREEDY, Stage, joint_rate

VARIANTS = ("stock", "pure", "native")
ROWS, PROMPT = (1, 8), 512
_FEW = {"stock": 4, "pure": 16}
"""Tokens of an answer where a step takes a tenth of a second and more; and a prompt of 16 in place of 512 for stock."""
_TOKENS, _SHORT, _STOCK_PROMPT = 96, 24, 16


def kernels(subject: Subject, variant: str, repetitions: int) -> dict[str, Any]:
    """Tokens a second of each number of rows and of a prompt; with the native kernels, those of one row are taken
    beside the memory bandwidth."""
    tokens = _FEW.get(variant, _TOKENS)
    if variant == "stock":
        measures = _stock(subject, tokens)
        return {name: _median(rate, 1 if name == "prompt" else repetitions) for name, rate in measures.items()}
    with subject.engine(native_kernels=variant == "native") as engine:
        one, many = (functools.partial(_decode, subject, engine, rows, tokens) for rows in ROWS)
        rates: dict[str, Any] = {}
        if variant == "native":
            rates["instructions"] = operations.instructions()
            rates["bandwidth"] = [_beside_bandwidth(one) for _ in range(repetitions + 1)][1:]
            rates["1"] = statistics.median(pair["rate"] for pair in rates["bandwidth"])
        else:
            rates["1"] = _median(one, repetitions)
        rates["8"] = _median(many, repetitions)
        prompts = iter(range(2 * repetitions + 2))
        rates["prompt"] = _median(lambda: _prefill(subject, engine, next(prompts)), repetitions)
        return rates


def _beside_bandwidth(measure: Callable[[], float]) -> dict[str, float]:
    """Tokens a second of one row and the memory bandwidth (bytes a second) of the same moment, which on virtual
    machines changes within minutes: the better of just before and just after."""
    before = bandwidth(usable_cores())
    rate = measure()
    return {"rate": rate, "bandwidth": max(before, bandwidth(usable_cores()))}


def _median(measure: Callable[[], float], repetitions: int) -> float:
    """After one that warms up."""
    return statistics.median([measure() for _ in range(repetitions + 1)][1:])


def _stock(subject: Subject, tokens: int) -> dict[str, Callable[[], float]]:
    prompts = [subject.ids(_SHORT, row) for row in range(max(ROWS))]
    return {
        "1": lambda: rivals.single_rate(subject.reference, prompts[0], tokens),
        "8": lambda: rivals.batch_rate(subject.reference, prompts, tokens, [GREEDY] * len(prompts)),
        "prompt": lambda: _STOCK_PROMPT / rivals.first_token(subject.reference, subject.ids(_STOCK_PROMPT, 1)),
    }


def _decode(subject: Subject, engine: Any, rows: int, tokens: int) -> float:
    stage = Stage(engine)
    streams = [stage.submit(subject.ids(_SHORT, row), tokens) for row in range(rows)]
    stage.run()
    return streams[0].rate if rows == 1 else joint_rate([stream.times for stream in streams])


def _prefill(subject: Subject, engine: Any, number: int) -> float:
    stage = Stage(engine)
    stream = stage.submit(subject.ids(PROMPT, 1000 + number), 1)
    stage.run()
    return PROMPT / stream.first
