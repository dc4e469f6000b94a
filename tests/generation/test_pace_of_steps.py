"""What the engine tells the pace of prefill about its steps."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.engine_driver import GREEDY, Driver
from support.tiny_models import make_tiny_model

from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine
from mlx_serving.actors.generation.pacing import PrefillPace
from mlx_serving.actors.messages.values import Stopping
from mlx_serving.actors.models.tokenizer import TextTokenizer
from mlx_serving.config.schema import Generation, PrefixCache, Speculation


def test_a_time_counts_where_the_step_read_and_the_one_set_going_have_as_much_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device has computed what was beside the former, the host has begun what is beside the latter."""
    record = make_tiny_model(tmp_path / "model", "llama")
    settings = Generation(
        max_rows=4, prefill_tokens=16, prefix_cache=PrefixCache(enabled=False), speculation=Speculation(mode="off")
    )
    engine = MlxEngine(record, settings, TextTokenizer.load(record.path))
    engine.load()
    seen: list[int] = []
    monkeypatch.setattr(PrefillPace, "observe", lambda self, seconds, prefilled: seen.append(prefilled))
    driver = Driver(engine)
    first = driver.submit([1, 2, 3], GREEDY, Stopping(max_tokens=40, ignore_eos=True))
    driver.run_until(first, 3)
    driver.submit(list(range(100, 150)), GREEDY, Stopping(max_tokens=4, ignore_eos=True))
    before, mixed = 0, 0
    while engine.pending:
        seen.clear()
        beside = engine.step().prefill_tokens
        if before == beside:
            assert seen in ([beside], [])
        else:
            mixed += 1
            assert seen == []
        before = beside
    assert mixed == 3  # the first chunk, the shorter last one, and the step after it
    engine.close()
