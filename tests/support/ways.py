"""Ways to get greedy answers from an engine. Each is one line in `WAYS`, and none may change a token."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import attrs
import mlx.core as mx
from support.engine_driver import Driver
from support.subjects import ROWS, Subject

from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine
from mlx_serving.actors.generation.mlx_engine.prefix_cache import LEAST_TOKENS
from mlx_serving.actors.messages.values import Sampling, Stopping
from mlx_serving.config.schema import PrefixCache

Answers = list[list[int]]
NEIGHBOURS = (
    Sampling(temperature=0.8, top_p=0.9),
    Sampling(top_k=20, seed=4),
    Sampling(temperature=0, repetition_penalty=1.3, frequency_penalty=0.2),
    Sampling(min_p=0.1, logprobs=True, top_logprobs=2),
    Sampling(temperature=1.5, seed=9),
    Sampling(temperature=0.6, top_k=50, top_p=0.9, presence_penalty=0.5),
    Sampling(temperature=0, logit_bias={65: 3.0}),
)


@attrs.frozen
class Way:
    """`answers` to the first prompts of a subject or to all, by an engine with `settings`."""

    answers: Callable[[Subject, MlxEngine], Answers]
    settings: dict[str, Any] = attrs.field(factory=dict)
    subjects: tuple[str, ...] = ()
    """The only ones it is for; empty: all."""

    def suits(self, name: str) -> bool:
        return not self.subjects or name in self.subjects

    def __call__(self, subject: Subject) -> Answers:
        with subject.engine(**self.settings) as engine:
            return self.answers(subject, engine)


def alone(subject: Subject, engine: MlxEngine) -> Answers:
    """One after the other."""
    driver = Driver(engine)
    ids = []
    for prompt in subject.prompts:
        ids.append(driver.submit(prompt, stopping=subject.stopping))
        driver.run()
    return driver.ids(ids)


def together(subject: Subject, engine: MlxEngine) -> Answers:
    """All at once."""
    driver = Driver(engine)
    ids = subject.submit(driver)
    driver.run()
    return driver.ids(ids)


def among_neighbours(subject: Subject, engine: MlxEngine) -> Answers:
    """A few, each in a batch with seven others that are sampled in other ways and have other lengths."""
    driver = Driver(engine)
    ids = []
    for place, prompt in enumerate(subject.prompts[: subject.few]):
        for step, sampling in enumerate(NEIGHBOURS):
            other = subject.prompts[(place + step) % len(subject.prompts)][: 30 + step]
            driver.submit(other, sampling, Stopping(max_tokens=subject.tokens + step, ignore_eos=True))
        ids.append(driver.submit(prompt, stopping=subject.stopping))
        rows = max(report.rows for report in driver.run())
        assert rows > ROWS // 2, f"only {rows} rows decoded together"
    return driver.ids(ids)


def from_one_to_many_to_one(subject: Subject, engine: MlxEngine) -> Answers:
    """A few, each at first alone; others come, end and are cancelled; it is paused, and alone again."""
    answers = []
    for place, prompt in enumerate(subject.prompts[: subject.few]):
        driver = Driver(engine)
        first = driver.submit(prompt, stopping=subject.stopping)
        driver.run_until(first, 1)
        short = driver.submit(subject.prompts[place - 1], stopping=Stopping(max_tokens=2, ignore_eos=True))
        driver.run_until(short, 1)
        left = driver.submit(subject.prompts[place - 1][::-1], Sampling(seed=3), subject.stopping)
        driver.run_until(left, 1)
        engine.cancel(left)
        driver.run_until(first, subject.tokens // 2)
        engine.pause(first)
        between = driver.submit(prompt, stopping=Stopping(max_tokens=3, ignore_eos=True))
        driver.run()
        engine.resume(first)
        driver.run()
        assert driver.sequences[between].ids == driver.sequences[first].ids[:3]
        answers.append(driver.sequences[first].ids)
    return answers


def without_compiled_functions(subject: Subject, _: MlxEngine) -> Answers:
    """Every operation by itself."""
    mx.disable_compile()
    try:
        with subject.engine(max_rows=ROWS) as engine:
            return together(subject, engine)
    finally:
        mx.enable_compile()


def from_memory(subject: Subject, engine: MlxEngine) -> Answers:
    """A second time, when all but the last token of each prompt is held, once alone and once together."""
    first = alone(subject, engine)
    held = engine.cache_stats().hit_tokens
    again = alone(subject, engine)
    long = [prompt for prompt in subject.prompts if len(prompt) > LEAST_TOKENS]
    assert engine.cache_stats().hit_tokens - held == sum(len(prompt) - 1 for prompt in long)
    assert first == again
    return together(subject, engine)


def branching(subject: Subject, engine: MlxEngine) -> Answers:
    """After prompts that have the first half, all, and more of each in common."""
    driver = Driver(engine)
    for prompt in subject.prompts:
        driver.submit([*prompt[: len(prompt) // 2], *prompt[::-1]][:400], segments=(len(prompt) // 2,))
    driver.run()
    ids = subject.submit(driver)
    driver.run()
    longer = [[*prompt, *driver.sequences[each].ids[:5]] for prompt, each in zip(subject.prompts, ids, strict=True)]
    rest = [
        driver.submit(prompt, stopping=Stopping(max_tokens=subject.tokens - 5, ignore_eos=True)) for prompt in longer
    ]
    driver.run()
    assert [driver.sequences[each].ids for each in rest] == [driver.sequences[each].ids[5:] for each in ids]
    return driver.ids(ids)


def from_disk(subject: Subject, _: MlxEngine) -> Answers:
    """By an engine that was started after another one had said the same."""
    with tempfile.TemporaryDirectory() as folder:
        kept = PrefixCache(directory=folder, block_tokens=48)
        with subject.engine(prefix_cache=kept) as engine:
            alone(subject, engine)
        with subject.engine(prefix_cache=kept) as engine:
            answers = together(subject, engine)
            stats = engine.cache_stats()
    long = [prompt for prompt in subject.prompts if len(prompt) > LEAST_TOKENS]
    assert stats.disk_hit_tokens == sum(len(prompt) - 1 for prompt in long)
    assert stats.dropped == 0
    return answers


WAYS = {
    "alone": Way(alone),
    "together": Way(together),
    "among sampled neighbours": Way(among_neighbours),
    "from one to many to one": Way(from_one_to_many_to_one),
    "without compiled functions": Way(without_compiled_functions),
    "each step read before the next": Way(from_one_to_many_to_one, {"pipeline_depth": 0}),
    "two steps ahead": Way(from_one_to_many_to_one, {"pipeline_depth": 2}),
    "three steps ahead": Way(together, {"pipeline_depth": 3}),
    "without a prefix cache": Way(together, {"prefix_cache": PrefixCache(enabled=False)}),
    "from the prefix cache": Way(from_memory, {"prefix_cache": PrefixCache()}),
    "from short blocks of the prefix cache": Way(from_memory, {"prefix_cache": PrefixCache(block_tokens=16)}),
    "after prompts that begin alike": Way(branching, {"prefix_cache": PrefixCache()}),
    "from disk after a restart": Way(from_disk),
    "prefilled in chunks of 16": Way(together, {"prefill_tokens": 16, "max_prefills": 3}),
}
