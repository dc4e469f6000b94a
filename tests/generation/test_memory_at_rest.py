"""What of the allocator's memory is given back while nothing runs."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from support.engine_driver import GREEDY, Driver
from support.tiny_models import make_tiny_model

from mlx_serving.actors.generation.mlx_engine import loading
from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine
from mlx_serving.actors.messages.values import Stopping
from mlx_serving.actors.models.tokenizer import TextTokenizer
from mlx_serving.config.schema import Generation


@pytest.mark.parametrize(
    ("is_cuda", "kept", "expected"), [(False, 8 << 30, 1), (False, 1 << 20, 0), (True, 8 << 30, 0)]
)
def test_much_is_given_back_but_on_cuda(
    monkeypatch: pytest.MonkeyPatch, is_cuda: bool, kept: int, expected: int
) -> None:
    cleared: list[None] = []
    monkeypatch.setattr(mx.cuda, "is_available", lambda: is_cuda)
    monkeypatch.setattr(mx, "get_cache_memory", lambda: kept)
    monkeypatch.setattr(mx, "clear_cache", lambda: cleared.append(None))
    loading.return_memory()
    assert len(cleared) == expected


def test_an_engine_at_rest_keeps_next_to_nothing_for_reuse(tmp_path: Path) -> None:
    record = make_tiny_model(tmp_path / "model", "llama")
    engine = MlxEngine(record, Generation(), TextTokenizer.load(record.path))
    engine.load()
    driver = Driver(engine)
    driver.submit([1, 2, 3], GREEDY, Stopping(max_tokens=4, ignore_eos=True))
    kept = mx.zeros(4 << 20)
    mx.eval(kept)
    engine.rest()
    del kept
    assert mx.get_cache_memory() >= 16 << 20  # a row runs: it may need that
    while engine.pending:
        engine.step()
    engine.rest()
    assert mx.get_cache_memory() <= 1 << 20
    engine.close()
