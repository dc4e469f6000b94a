"""Time to the first token of prompts that are new, that begin like earlier ones, and that do so after a restart."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from mlx_serving.config.schema import PrefixCache
from tools.bench.inside.models import Subject
from tools.bench.inside.sizes import InsideSize
from tools.bench.inside.stage import Stage, Stream
from tools.bench.quantiles import Spread

_TAIL = 32
_TURN_TOKENS = 24


def reuse(subject: Subject, size: InsideSize) -> dict[str, Any]:
    """Seconds of every repetition, their ratios, and how much of a chat's prompts was not computed again."""
    cold, shared, restarted = [], [], []
    for number in range(size.repetitions + 1):
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            first = _first_tokens(subject, size, Path(folder), number, 2)
            again = _first_tokens(subject, size, Path(folder), number, 1, seed=77)
        if number:
            cold.append(first[0])
            shared.append(first[1])
            restarted.append(again[0])
    with subject.engine() as engine:
        without = _answers(subject, size, Stage(engine), 1, 2, 50)[1]
    return {
        "shared_tokens": size.shared_tokens,
        "cold": cold,
        "shared": shared,
        "restarted": restarted,
        "cache_off": without,
        "ratio_shared": _ratios(shared, cold),
        "ratio_restarted": _ratios(restarted, cold),
        "chat": _chat(subject, size),
    }


def _ratios(parts: list[float], wholes: list[float]) -> dict[str, Any] | None:
    spread = Spread.of(part / whole for part, whole in zip(parts, wholes, strict=True))
    return spread.json() if spread is not None else None


def _first_tokens(
    subject: Subject, size: InsideSize, folder: Path, number: int, requests: int, seed: int = 50
) -> list[float]:
    """Of several requests in turn, by an engine that keeps its cache in `folder`."""
    with subject.engine(prefix_cache=PrefixCache(directory=str(folder))) as engine:
        stage = Stage(engine)
        stage.submit(subject.ids(size.long_prompt_tokens // 2, 5000 + number), 2)  # nothing is compiled later
        stage.run()
        return _answers(subject, size, stage, number, requests, seed)


def _answers(subject: Subject, size: InsideSize, stage: Stage, number: int, requests: int, seed: int) -> list[float]:
    prefix = subject.ids(size.shared_tokens, 100 + number)
    found = []
    for request in range(requests):
        prompt = [*prefix, *subject.ids(_TAIL, seed + request)]
        stream = stage.submit(prompt, 4, segments=(size.shared_tokens,))
        stage.run()
        found.append(stream.first)
    return found


def _chat(subject: Subject, size: InsideSize) -> dict[str, Any]:
    """Turns of a chat with a system prompt. `reused`: of the prompt tokens after the first turn, those taken from the
    cache; `possible`: those that an earlier turn had."""
    prompt = subject.ids(size.shared_tokens // 2, 7)
    total = known = cached = 0
    with subject.engine(prefix_cache=PrefixCache()) as engine:
        stage = Stage(engine)
        before: list[int] = []
        for turn in range(size.turns):
            prompt = [*prompt, *subject.ids(_TURN_TOKENS, 200 + turn)]
            stream = _turn(stage, prompt)
            if turn and stream.end is not None:
                total, known = total + len(prompt), known + len(before)
                cached += stream.end.cached_tokens
            before = [*prompt, *stream.ids]
            prompt = list(before)
    return {"turns": size.turns, "reused": cached / total, "possible": known / total}


def _turn(stage: Stage, prompt: list[int]) -> Stream:
    stream = stage.submit(prompt, _TURN_TOKENS, segments=(len(prompt) - _TURN_TOKENS,))
    stage.run()
    return stream
