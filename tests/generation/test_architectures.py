"""Every kind of cache, on small random weights: batched, alone and mlx-lm say the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.engine_driver import Driver
from support.engines import loaded, mlx_lm_greedy
from support.tiny_models import CONFIGURATIONS, make_tiny_model

from mlx_serving.actors.messages.values import Stopping
from mlx_serving.config.schema import Generation

PROMPTS = [list(text.encode()) for text in ("a", "hello", "the cat sat on the mat", "so it goes" * 4)]
TOKENS = 16
STOPPING = Stopping(max_tokens=TOKENS, ignore_eos=True)


@pytest.mark.parametrize("architecture", sorted(CONFIGURATIONS))
def test_batched_alone_and_mlx_lm_say_the_same(architecture: str, folder: Path) -> None:
    engine = loaded(make_tiny_model(folder, architecture), Generation(prefill_tokens=16))
    driver = Driver(engine)
    expected = [mlx_lm_greedy(engine, prompt, TOKENS)[0] for prompt in PROMPTS]
    alone = []
    for prompt in PROMPTS:
        alone.append(driver.submit(prompt, stopping=STOPPING))
        driver.run()
    together = [driver.submit(prompt, stopping=STOPPING) for prompt in PROMPTS]
    driver.run_until(together[1], 5)
    engine.pause(together[1])
    driver.run_until(together[2], 12)
    engine.resume(together[1])
    driver.run()
    assert driver.ids(alone) == expected
    assert driver.ids(together) == expected
    assert len({tuple(each) for each in expected}) > 1
    engine.close()


def test_a_model_whose_caches_cannot_be_merged_serves_one_row_at_a_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_lm.models.cache import ConcatenateKVCache
    from mlx_lm.models.llama import Model

    kind: Any = ConcatenateKVCache
    monkeypatch.setattr(Model, "make_cache", lambda self: [kind() for _ in self.layers])
    engine = loaded(make_tiny_model(folder, "llama"))
    driver = Driver(engine)
    ids = [driver.submit(prompt) for prompt in PROMPTS]
    reports = driver.run()
    assert max(report.rows for report in reports) == 1
    assert driver.ids(ids) == [mlx_lm_greedy(engine, prompt, 8)[0] for prompt in PROMPTS]
