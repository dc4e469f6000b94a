"""mlx_lm in the same process: one sequence by `generate_step`, which `stream_generate` runs, many by its generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.sample_utils import make_logits_processors, make_sampler

from mlx_serving.actors.messages.values import Sampling
from tools.bench.inside.stage import joint_rate


def single_rate(model: Any, prompt: Sequence[int], tokens: int) -> float:
    """Tokens a second after the first, greedy."""
    steps = generate_step(mx.array(list(prompt)), model, max_tokens=tokens)
    next(steps)
    started = monotonic()
    count = sum(1 for _ in steps)
    return count / (monotonic() - started)


def first_token(model: Any, prompt: Sequence[int]) -> float:
    """Seconds until the first token."""
    started = monotonic()
    next(generate_step(mx.array(list(prompt)), model, max_tokens=1))
    return monotonic() - started


def batch_rate(model: Any, prompts: Sequence[Sequence[int]], tokens: int, samplings: Sequence[Sampling]) -> float:
    """Tokens a second of all rows together while every one of them was decoding."""
    generator: Any = BatchGenerator(model, completion_batch_size=len(prompts), stop_tokens=[])
    try:
        uids = generator.insert(
            [list(prompt) for prompt in prompts],
            [tokens] * len(prompts),
            samplers=[_sampler(each) for each in samplings],
            logits_processors=[_processors(each) for each in samplings],
        )
        times: dict[int, list[float]] = {uid: [] for uid in uids}
        while any(len(each) < tokens for each in times.values()):
            _, answers = generator.next()
            now = monotonic()
            for answer in answers:
                times[answer.uid].append(now)
    finally:
        generator.close()
    return joint_rate(list(times.values()))


_SAMPLERS: dict[str, Callable[..., Any]] = {}


def _sampler(sampling: Sampling) -> Callable[..., Any]:
    """The same object for the same settings: mlx_lm then samples such rows in one call."""
    key = repr((sampling.temperature, sampling.top_p, sampling.min_p, sampling.top_k))
    if key not in _SAMPLERS:
        top_p = sampling.top_p if sampling.top_p < 1 else 0.0
        _SAMPLERS[key] = make_sampler(sampling.temperature, top_p, sampling.min_p, top_k=sampling.top_k)
    return _SAMPLERS[key]


def _processors(sampling: Sampling) -> list[Any]:
    processors: list[Any] = make_logits_processors(
        repetition_penalty=sampling.repetition_penalty if sampling.repetition_penalty != 1 else None,
        presence_penalty=sampling.presence_penalty or None,
        frequency_penalty=sampling.frequency_penalty or None,
    )
    return processors
