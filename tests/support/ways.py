"""Ways to get greedy answers from an engine. Each is one line in `WAYS`, and none may change a token."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
import pytest
from support.eager import eager
from support.engine_driver import Driver
from support.free_guide import only_free_guides
from support.subjects import ROWS, Subject
from support.tiny_models import CONFIGURATIONS, make_tiny_model

from mlx_serving.actors.generation.mlx_engine import slab_pass
from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine
from mlx_serving.actors.generation.mlx_engine.prefix_cache import LEAST_TOKENS
from mlx_serving.actors.messages.values import Guidance, Sampling, Stopping, pack_ids
from mlx_serving.actors.models.metadata import describe_folder
from mlx_serving.config.schema import MetalOptimizations, PrefixCache, Speculation
from mlx_serving.native import kernels

Answers = list[list[int]]
_STATES = ("gemma3_text", "mamba2", "lfm2", "falcon_h1", "qwen3_next")
"""Models whose caches cannot be rolled back: nothing is ever proposed to them."""
_NOT_DRAFTED = (*_STATES, "smollm2")
_NOT_COMPILED = (
    *(name for name in CONFIGURATIONS if name not in ("llama_4bit", "qwen2_4bit")),
    "llama_4bit with 8-bit caches",
    "llama_4bit with 4-bit caches",
)
"""Models whose keys and values no kernel of the CPU writes in place: their steps are not compiled."""
_needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None or kernels.choice.choice == "pure", reason="nothing can compile steps"
)
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
    without: tuple[str, ...] = ()
    """Subjects that it is not for."""
    marks: tuple[pytest.MarkDecorator, ...] = ()

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


def beside_one_that_runs(subject: Subject, engine: MlxEngine) -> Answers:
    """All but the first come while another answers, each behind the one before."""
    driver = Driver(engine)
    running = driver.submit(subject.prompts[0], stopping=Stopping(max_tokens=400, ignore_eos=True))
    driver.run_until(running, 2)
    ids = []
    for prompt in subject.prompts:
        ids.append(driver.submit(prompt, stopping=subject.stopping))
        driver.run_until(ids[-1], 1)
    assert not driver.sequences[running].is_over
    engine.cancel(running)
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


def with_compiled_steps(subject: Subject, _: MlxEngine) -> Answers:
    """Layer after layer, as on a GPU: what takes all of them in one operation would leave nothing to compile."""
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slab_pass, "can_stack", lambda model: False)
        with subject.engine(compile_steps="on") as engine:
            program = engine._decoding.batch.cache.program  # type: ignore[attr-defined]
            step: Callable[..., mx.array] = program._compiled_step

            def noted(tokens: mx.array, *rest: Any) -> mx.array:
                calls.append(tokens.shape)
                return step(tokens, *rest)

            patch.setattr(program, "_compiled_step", noted)
            answers = from_one_to_many_to_one(subject, engine)
    assert len(calls) >= subject.tokens
    return answers


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
    # Closing waits for its last writes no longer than it may, so a busy machine may find less.
    assert 0 < stats.disk_hit_tokens <= sum(len(prompt) - 1 for prompt in long)
    assert stats.dropped == 0
    return answers


def looked_up(subject: Subject, engine: MlxEngine) -> Answers:
    """Proposals come from the text, and from a prediction that is wrong in the middle; greedy and sampled rows."""
    eager(engine)
    driver = Driver(engine)
    ids = []
    for prompt, answer in zip(subject.prompts, subject.expected, strict=True):
        half = len(answer) // 2
        prediction = pack_ids([*answer[:half], (answer[half] + 1) % 256, *answer[half + 1 :]])
        ids.append(driver.submit(prompt, stopping=subject.stopping, prediction_ids=prediction))
        driver.submit(prompt, Sampling(seed=3, top_k=3, frequency_penalty=0.5), subject.stopping)
    driver.run()
    _saw_drafts(driver, ids)
    return driver.ids(ids)


def drafted_by_itself(subject: Subject, _: MlxEngine) -> Answers:
    """The draft model is the model, so that all or nearly all proposals are right."""
    with subject.engine(draft=subject.record, speculation=Speculation(mode="draft", max_tokens=5)) as engine:
        return _drafted(subject, eager(engine))


def drafted_by_another(subject: Subject, _: MlxEngine) -> Answers:
    """The draft model is a small random one, so that most proposals are wrong."""
    with tempfile.TemporaryDirectory() as folder:
        draft = make_tiny_model(Path(folder) / "draft", "llama_4bit", seed=8)
        with subject.engine(draft=draft, speculation=Speculation(mode="draft", max_tokens=3)) as engine:
            return _drafted(subject, eager(engine))


def drafted_by_folder(folder: Path, subject: Subject, _: MlxEngine) -> Answers:
    """The draft model is another real one of the same vocabulary."""
    draft = describe_folder(folder, folder.name, "a folder")
    with subject.engine(draft=draft, speculation=Speculation(mode="draft", max_tokens=5)) as engine:
        return _drafted(subject, eager(engine))


def _drafted(subject: Subject, engine: MlxEngine) -> Answers:
    driver = Driver(engine)
    ids = subject.submit(driver)
    driver.submit(subject.prompts[0], Sampling(seed=5, temperature=0.7), subject.stopping)
    driver.run()
    _saw_drafts(driver, ids)
    return driver.ids(ids)


def _saw_drafts(driver: Driver, ids: list[int]) -> None:
    """A way to speculate that never does would prove nothing."""
    ends = [driver.sequences[each].end for each in ids]
    drafted = sum(end.drafts.accepted + end.drafts.rejected for end in ends if end is not None)
    assert drafted


def beside_guided_rows(subject: Subject, engine: MlxEngine) -> Answers:
    """Rows that may say anything, in a batch with rows that must say JSON."""
    driver = Driver(engine)
    ids, guided = [], []
    for prompt in subject.prompts:
        ids.append(driver.submit(prompt, stopping=subject.stopping))
        stopping = Stopping(max_tokens=subject.tokens)
        guided.append(driver.submit(prompt[:30], stopping=stopping, guidance=Guidance("json_object")))
    driver.run()
    assert all(driver.sequences[each].text.lstrip()[:1] in ("{", "") for each in guided)
    return driver.ids(ids)


def guided_by_nothing(subject: Subject, engine: MlxEngine) -> Answers:
    """Rows whose guide lets everything through: masks are made and applied at every step."""
    is_text = subject.record.vocab_size > 1000
    with nullcontext() if is_text else only_free_guides():
        driver = Driver(engine)
        ids = subject.submit(driver, guidance=Guidance("regex", r"(?s:.*)"))
        driver.submit(subject.prompts[0], Sampling(seed=1), subject.stopping)
        driver.run()
    return driver.ids(ids)


WAYS = {
    "alone": Way(alone),
    "together": Way(together),
    "beside one that runs": Way(beside_one_that_runs),
    "among sampled neighbours": Way(among_neighbours),
    "from one to many to one": Way(from_one_to_many_to_one),
    "without native kernels": Way(together, {"native_kernels": False}),
    "without compiled functions": Way(without_compiled_functions),
    "with compiled steps": Way(with_compiled_steps, without=_NOT_COMPILED, marks=(_needs_compiler,)),
    "host and device in turns": Way(together, {"metal_optimizations": MetalOptimizations(blit_queue=False)}),
    "without a memory pool": Way(
        from_one_to_many_to_one, {"metal_optimizations": MetalOptimizations(memory_pool=False)}
    ),
    "each step read before the next": Way(
        from_one_to_many_to_one, {"metal_optimizations": MetalOptimizations(command_buffer_ring=1)}
    ),
    "two steps ahead": Way(from_one_to_many_to_one, {"metal_optimizations": MetalOptimizations(command_buffer_ring=3)}),
    "three steps ahead": Way(together, {"metal_optimizations": MetalOptimizations(command_buffer_ring=4)}),
    "from the prefix cache": Way(from_memory, {"prefix_cache": PrefixCache()}),
    "from short blocks of the prefix cache": Way(from_memory, {"prefix_cache": PrefixCache(block_tokens=16)}),
    "after prompts that begin alike": Way(branching, {"prefix_cache": PrefixCache()}),
    "from disk after a restart": Way(from_disk),
    "speculating from the text": Way(
        looked_up, {"speculation": Speculation(mode="lookup", max_tokens=6)}, without=_STATES
    ),
    "drafted by itself": Way(drafted_by_itself, without=_NOT_DRAFTED),
    "drafted by another": Way(drafted_by_another, without=_NOT_DRAFTED),
    "beside guided rows": Way(beside_guided_rows),
    "guided by nothing": Way(guided_by_nothing, {"speculation": Speculation(mode="off")}),
    "prefilled in chunks of 16": Way(together, {"prefill_tokens": 16, "max_prefills": 3}),
}

MAIN_WAYS = (
    "alone",
    "beside one that runs",
    "among sampled neighbours",
    "without native kernels",
    "with compiled steps",
    "two steps ahead",
    "from short blocks of the prefix cache",
    "from disk after a restart",
    "speculating from the text",
    "guided by nothing",
)
"""For subjects that differ from another one in little, or are slow."""
