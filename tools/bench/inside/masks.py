"""What masks cost: steps of eight rows that are held to a schema, beside steps of eight that are free."""

from __future__ import annotations

import json
from time import monotonic
from typing import Any

from mlx_serving.actors.messages.values import Guidance
from tools.bench.inside.models import Subject
from tools.bench.inside.sizes import InsideSize
from tools.bench.inside.stage import Stage
from tools.bench.quantiles import Spread

_ROWS = 8
_SCHEMA = {
    "type": "array",
    "minItems": 1000,
    "items": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "size": {"type": "integer"}, "kind": {"enum": ["a", "b", "cd"]}},
        "required": ["name", "size", "kind"],
        "additionalProperties": False,
    },
}


def masks(subject: Subject, size: InsideSize) -> dict[str, Any]:
    """Seconds of a step, free and guided in turn, and the ratio of each repetition."""
    guidance = Guidance("json_schema", json.dumps(_SCHEMA))
    free, guided = [], []
    with subject.engine() as engine:
        for repetition in range(size.masked_repetitions + 1):
            pair = [_step_seconds(subject, Stage(engine), size, each) for each in (None, guidance)]
            if repetition:
                free.append(pair[0])
                guided.append(pair[1])
    ratio = Spread.of(with_masks / without for with_masks, without in zip(guided, free, strict=True))
    return {"rows": _ROWS, "free": free, "guided": guided, "ratio": ratio.json() if ratio else None}


def _step_seconds(subject: Subject, stage: Stage, size: InsideSize, guidance: Guidance | None) -> float:
    streams = [stage.submit(subject.ids(size.prompt_tokens, row), 1 << 20, guidance=guidance) for row in range(_ROWS)]
    stage.run_until_tokens(streams, 4)
    started = monotonic()
    for _ in range(size.masked_steps):
        stage.step()
    seconds = (monotonic() - started) / size.masked_steps
    stage.abandon()
    return seconds
