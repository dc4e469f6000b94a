"""A whole engine that takes prompts in by compiled chunks, with CUDA's kernels run by g++."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
import pytest
from support import tiny_models
from support.engine_driver import Driver
from support.engines import loaded, mlx_lm_greedy
from support.gpu_kernels import HAS_COMPILER
from support.shims import Shims, forget

from mlx_serving.actors.generation.mlx_engine import loading, prompts
from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine
from mlx_serving.actors.messages.values import Stopping
from mlx_serving.config.schema import Generation, PrefixCache, Speculation

_TIE = 0.02
"""Of log-probabilities in half precision: closer ones are told apart by the order of sums."""


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlxEngine]:
    if not HAS_COMPILER:
        pytest.skip("there is no g++")
    heads = {"hidden_size": 64, "head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    monkeypatch.setitem(tiny_models.CONFIGURATIONS, "llama", {**heads, "max_position_embeddings": 1024})
    record = attrs.evolve(tiny_models.make_tiny_model(tmp_path / "model", "llama"), context_length=1024)
    weights = mx.load(f"{record.path}/model.safetensors")
    assert isinstance(weights, dict)
    mx.eval(weights)
    halved = {name: each.astype(mx.float16) for name, each in weights.items()}
    mx.save_safetensors(f"{record.path}/model.safetensors", halved, {"format": "mlx"})
    Shims(tmp_path).use("cuda", monkeypatch)
    monkeypatch.setattr(mx, "compile", lambda function: function)
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    monkeypatch.setattr(loading, "widen", lambda model, record: record)
    monkeypatch.setattr(loading, "in_place_attention", lambda settings: settings.in_place_attention)
    chosen = Generation(
        max_rows=4,
        native_kernels=False,
        cpu_dense_rows=0,
        speculation=Speculation(mode="off"),
        prefix_cache=PrefixCache(block_tokens=16),
    )
    engine = loaded(record, chosen)
    assert engine._chunks is not None
    yield engine
    engine.close()
    forget()


def _is_said(engine: MlxEngine, prompt: list[int], said: list[int]) -> bool:
    """Whether mlx-lm says so too, as far as no two tokens were as good."""
    wanted, logprobs = mlx_lm_greedy(engine, prompt, len(said))
    for place, (token, other) in enumerate(zip(wanted, said, strict=True)):
        if token != other:
            margin: Any = logprobs[place][token] - logprobs[place][other]
            return bool(margin.item() < _TIE)
    return True


def test_prompts_of_any_length_go_in_beside_others_pause_and_begin_alike(engine: MlxEngine) -> None:
    driver, drawn = Driver(engine), random.Random(3)
    beginning = [drawn.randrange(250) for _ in range(120)]
    texts: dict[int, list[int]] = {}
    for _ in range(14):
        prompt = beginning[: drawn.choice([1, 2, 17, 40, 100, 120])]
        prompt = prompt + [drawn.randrange(250) for _ in range(drawn.choice([1, 3, 30]))]
        tokens = drawn.choice([1, 3, 9, 20])
        said = driver.submit(prompt, stopping=Stopping(max_tokens=tokens, ignore_eos=True))
        texts[said] = prompt
        for _ in range(drawn.randrange(4)):
            driver.step()
        if drawn.random() < 0.4:
            paused = drawn.choice(list(texts))
            engine.pause(paused)
            driver.step()
            engine.resume(paused)
        if drawn.random() < 0.2:
            cancelled = drawn.choice(list(texts))
            engine.cancel(cancelled)
            del texts[cancelled]
    driver.run()
    for said, prompt in texts.items():
        assert _is_said(engine, prompt, driver.sequences[said].ids)
    assert engine.cache_stats().hits > 3


def test_a_chunk_that_fails_costs_its_row_alone(engine: MlxEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks, driver = engine._chunks, Driver(engine)
    assert chunks is not None
    prompt = [place % 200 for place in range(100)]

    def fail(*_: Any) -> mx.array:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(chunks, "_through", fail)
        failed = driver.submit(prompt)
        driver.run()
    error = driver.sequences[failed].error
    assert error is not None
    assert "no memory" in error.message
    # What is waited for may be what failed, long after it was set going.
    with monkeypatch.context() as patch:
        patch.setattr(chunks, "wait", fail)
        failed = driver.submit([*prompt, 1])
        driver.run()
    assert driver.sequences[failed].error is not None
    said = driver.submit([*prompt, 2])
    driver.run()
    assert _is_said(engine, [*prompt, 2], driver.sequences[said].ids)


def test_few_long_prompts_are_filled_at_once_for_their_memory(
    engine: MlxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "_MOST_LONG", 2)
    driver = Driver(engine)
    texts = [[(place * (7 + row)) % 250 for place in range(300 + row)] for row in range(4)]
    said = [driver.submit(text, stopping=Stopping(max_tokens=3, ignore_eos=True)) for text in texts]
    most = 0
    while engine.pending:
        driver.step()
        most = max(most, len(engine._prompts.filling))
    assert most == 2
    for text, each in zip(texts, said, strict=True):
        assert _is_said(engine, text, driver.sequences[each].ids)


def test_prompts_that_are_paused_keep_no_other_from_beginning(
    engine: MlxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "_MOST_LONG", 1)
    driver = Driver(engine)
    texts = [[(place * (7 + row)) % 250 for place in range(600)] for row in range(2)]
    first = driver.submit(texts[0], stopping=Stopping(max_tokens=3, ignore_eos=True))
    driver.step()
    engine.pause(first)
    second = driver.submit(texts[1], stopping=Stopping(max_tokens=3, ignore_eos=True))
    driver.run_until(second, 3)
    assert not driver.sequences[first].ids
    engine.resume(first)
    driver.run()
    assert _is_said(engine, texts[0], driver.sequences[first].ids)
