"""A replica's budget for keys and values changes as other models come and go."""

from __future__ import annotations

from pathlib import Path

from support.engine_driver import Driver
from support.engines import loaded
from support.tiny_models import make_tiny_model

from mlx_serving.config.schema import Generation


def test_cached_prefixes_above_a_smaller_grant_go_and_the_rest_serves_on(tmp_path: Path) -> None:
    engine = loaded(make_tiny_model(tmp_path / "llama", "llama"), Generation(max_rows=4))
    driver = Driver(engine)
    prompts = [[number, *range(1, 120)] for number in range(130, 138)]
    said = [driver.submit(prompt) for prompt in prompts]
    driver.run()
    before = engine.cache_stats()
    engine.grant(2 * before.bytes)
    after = engine.cache_stats()
    assert after.limit_bytes == Generation().prefix_cache.share_of(2 * before.bytes)
    assert 0 < after.bytes <= after.limit_bytes < before.bytes
    again = [driver.submit(prompt) for prompt in prompts]
    driver.run()
    assert driver.ids(again) == driver.ids(said)
    engine.close()
