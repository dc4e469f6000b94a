"""What running streams feel while a long prompt is prefilled."""

from __future__ import annotations

from typing import Any

from mlx_serving.actors.generation.mlx_engine.device import is_cpu
from tools.bench.inside.models import Subject
from tools.bench.inside.sizes import InsideSize
from tools.bench.inside.stage import Stage, mixed
from tools.bench.quantiles import Spread

_STREAMS = 8
_UNBOUNDED = 1e9


def interference(subject: Subject, size: InsideSize) -> dict[str, Any]:
    """Inter-token times of eight streams before a long prompt and during it, as it is and with one switch turned."""
    result: dict[str, Any] = {"prompt_tokens": size.long_prompt_tokens, "streams": _STREAMS}
    ways: dict[str, dict[str, Any]] = {"paced": {}, "prefill_slowdown unbounded": {"prefill_slowdown": _UNBOUNDED}}
    if not is_cpu():
        ways["compile_steps off"] = {"compile_steps": "off"}
    for name, settings in ways.items():
        with subject.engine(**settings) as engine:
            _once(subject, Stage(engine), size, -1)
            runs = [_once(subject, Stage(engine), size, number) for number in range(size.repetitions)]
        result[name] = runs
    return result


def _once(subject: Subject, stage: Stage, size: InsideSize, number: int) -> dict[str, Any]:
    endless = 1 << 20
    streams = [
        stage.submit(subject.ids(size.prompt_tokens, row), endless, sampling)
        for row, sampling in enumerate(mixed(_STREAMS))
    ]
    stage.run_until_tokens(streams, 8)
    begin = streams[0].times[-1]
    stage.run_until_tokens(streams, 8 + size.tokens)
    middle = streams[0].times[-1]
    long = stage.submit(subject.ids(size.long_prompt_tokens, 1000 + number), 2)
    stage.run_until_tokens([long], 1)
    end = long.times[0]
    idle = Spread.of(gap for stream in streams for gap in stream.gaps(begin, middle))
    during = Spread.of(gap for stream in streams for gap in stream.gaps(middle, end))
    stage.abandon()
    assert idle is not None
    assert during is not None
    return {"idle": idle.json(), "during": during.json(), "first_token": long.first, "ratio": during.p99 / idle.p99}
