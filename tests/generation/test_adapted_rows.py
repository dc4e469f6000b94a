"""The engine with LoRA adapters: each row says what mlx-lm says with its adapter, in any company."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model
from support.adapters import EVERYTHING, make_adapter
from support.engine_driver import Driver
from support.stock import own_functions
from support.tiny_models import make_tiny_model

from mlx_serving.actors.errors import ModelLoadFailed, ModelNotFound
from mlx_serving.actors.generation.mlx_engine import loading
from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine
from mlx_serving.actors.messages.values import Stopping
from mlx_serving.actors.models.adapter_store import AdapterStore
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.actors.models.tokenizer import TextTokenizer
from mlx_serving.config.schema import Generation

TOKENS = 12
STOPPING = Stopping(max_tokens=TOKENS, ignore_eos=True)


def engine_of(base: ModelRecord, store: AdapterStore, **settings: Any) -> MlxEngine:
    engine = MlxEngine(
        base,
        Generation(**{"max_rows": 8, **settings}),
        TextTokenizer.load(base.path),
        find_adapter=lambda identity: store.open(base, identity),
    )
    engine.load()
    return engine


def mlx_lm_says(base: ModelRecord, adapter: Path | None, prompt: Sequence[int], tokens: int = TOKENS) -> list[int]:
    """Greedy tokens of mlx-lm with its own loading of base and adapter."""
    model: Any
    model, _ = load_model(base.path)
    if adapter is not None:
        model = load_adapters(model, str(adapter))
    loading.widen(model, base)
    model.eval()
    with own_functions(model):
        return [int(token) for token, _ in generate_step(mx.array(list(prompt)), model, max_tokens=tokens)]


@pytest.fixture(params=["llama", "qwen3", "gemma3_text", "mixtral", "mamba2"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> ModelRecord:
    return make_tiny_model(tmp_path / "models" / str(request.param), str(request.param))


def keys_of(base: ModelRecord) -> tuple[str, ...]:
    """Linear layers alone: experts are not for adapters."""
    if base.architecture == "mamba2":
        return ("mixer.in_proj", "mixer.out_proj")
    return ("self_attn.q_proj", "self_attn.o_proj") if base.architecture == "mixtral" else EVERYTHING


def added(store: AdapterStore, base: ModelRecord, folder: Path, name: str, **options: Any) -> tuple[str, Path]:
    path = make_adapter(folder / name, base.path, keys=keys_of(base), **options)
    return store.add(path, base, name).identity, path


def test_rows_with_two_adapters_and_with_none_say_what_mlx_lm_says(base: ModelRecord, tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    first = added(store, base, tmp_path, "first", seed=1)
    second = added(store, base, tmp_path, "second", seed=2, rank=8, scale=16.0)
    driver = Driver(engine_of(base, store))
    prompts = [[7, 20, 3, 40, 5], [60, 2, 9], [33, 12, 90, 4, 8, 100, 3], [1, 2, 3]]
    chosen = [("", None), first, second, first]
    ids = [
        driver.submit(prompt, stopping=STOPPING, adapter=identity)
        for prompt, (identity, _) in zip(prompts, chosen, strict=True)
    ]
    driver.run()
    expected = [mlx_lm_says(base, path, prompt) for prompt, (_, path) in zip(prompts, chosen, strict=True)]
    assert driver.ids(ids) == expected
    assert driver.ids(ids)[1] != mlx_lm_says(base, None, prompts[1]), "the adapter changes the answer"
    driver.engine.close()


@pytest.fixture
def llama(tmp_path: Path) -> ModelRecord:
    return make_tiny_model(tmp_path / "models" / "llama", "llama")


def test_an_adapter_that_comes_while_others_run_disturbs_nobody(llama: ModelRecord, tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    first, first_path = added(store, llama, tmp_path, "first", seed=1)
    second, second_path = added(store, llama, tmp_path, "second", seed=2, rank=16)
    driver = Driver(engine_of(llama, store))
    plain = driver.submit([7, 20, 3], stopping=STOPPING)
    driver.run_until(plain, 3)
    early = driver.submit([7, 20, 3], stopping=STOPPING, adapter=first)
    driver.run_until(early, 3)
    late = driver.submit([7, 20, 3], stopping=STOPPING, adapter=second)
    driver.run()
    assert driver.ids([plain, early, late]) == [
        mlx_lm_says(llama, path, [7, 20, 3]) for path in (None, first_path, second_path)
    ]


def test_a_paused_row_comes_back_with_its_adapter(llama: ModelRecord, tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    first, path = added(store, llama, tmp_path, "first", seed=1)
    driver = Driver(engine_of(llama, store))
    row = driver.submit([5, 6, 7], stopping=STOPPING, adapter=first)
    other = driver.submit([9, 9], stopping=STOPPING)
    driver.run_until(row, 2)
    driver.engine.pause(row)
    driver.run()
    driver.engine.resume(row)
    driver.run()
    assert driver.ids([row, other]) == [mlx_lm_says(llama, path, [5, 6, 7]), mlx_lm_says(llama, None, [9, 9])]


def test_one_adapter_after_another_needs_no_more_than_its_places(llama: ModelRecord, tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    driver = Driver(engine_of(llama, store, max_adapters=2))
    for seed in range(4):
        identity, path = added(store, llama, tmp_path, f"a{seed}", seed=seed)
        row = driver.submit([5, 6, 7], stopping=STOPPING, adapter=identity)
        driver.run()
        assert driver.ids([row]) == [mlx_lm_says(llama, path, [5, 6, 7])]
    assert isinstance(driver.engine, MlxEngine)
    assert driver.engine._adapters.names == ["a2", "a3"]


def test_an_adapter_that_cannot_be_used_fails_its_request_alone(llama: ModelRecord, tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    good, _ = added(store, llama, tmp_path, "good")
    driver = Driver(engine_of(llama, store))
    running = driver.submit([7, 20, 3], stopping=STOPPING)
    driver.step()
    with pytest.raises(ModelNotFound, match="no adapter 'unknown'"):
        driver.submit([1], adapter="unknown@0")
    with pytest.raises(ModelLoadFailed, match="has just changed"):
        driver.submit([1], adapter="good@0000")
    (tmp_path / "adapters" / "llama" / "good" / "adapters.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(ModelLoadFailed, match="cannot be used"):
        driver.submit([1], adapter=good)
    driver.run()
    assert driver.ids([running]) == [mlx_lm_says(llama, None, [7, 20, 3])]


@pytest.mark.model
def test_smollm2_with_an_adapter_says_what_mlx_lm_says(smollm2: ModelRecord, tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    path = make_adapter(tmp_path / "own", smollm2.path, layers=4, keys=EVERYTHING, strength=0.6)
    identity = store.add(path, smollm2, "own").identity
    engine = engine_of(smollm2, store, cpu_dense_rows=0)
    tokenizer = TextTokenizer.load(smollm2.path)
    prompts = [tokenizer.encode(text) for text in ("The capital of France is", "Water boils at")]
    driver = Driver(engine)
    stopping = Stopping(max_tokens=6, ignore_eos=True)
    ids = [driver.submit(prompt, stopping=stopping, adapter=identity) for prompt in prompts]
    ids += [driver.submit(prompt, stopping=stopping) for prompt in prompts]
    driver.run()
    expected = [mlx_lm_says(smollm2, path, prompt, 6) for prompt in prompts]
    expected += [mlx_lm_says(smollm2, None, prompt, 6) for prompt in prompts]
    assert driver.ids(ids) == expected
    assert expected[0] != expected[2]


def test_cached_prefixes_belong_to_the_adapter_they_were_computed_with(llama: ModelRecord, tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    first, path = added(store, llama, tmp_path, "first", seed=1)
    driver = Driver(engine_of(llama, store))
    prompt = list(b"a prompt that two rows share and a third does not")
    cached, answers = [], []
    for identity in ("", first, first, ""):
        row = driver.submit(prompt, stopping=STOPPING, adapter=identity)
        driver.run()
        end = driver.sequences[row].end
        assert end is not None
        cached.append(end.cached_tokens)
        answers.append(driver.sequences[row].ids)
    assert cached == [0, 0, len(prompt) - 1, len(prompt) - 1]
    plain, adapted = mlx_lm_says(llama, None, prompt), mlx_lm_says(llama, path, prompt)
    assert answers == [plain, adapted, adapted, plain]
