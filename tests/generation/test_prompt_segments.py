"""Where a prompt is taken up again: to the token, or for models that cannot be cut back at the end of a message."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from support.engine_driver import Driver
from support.engines import loaded, mlx_lm_greedy
from support.tiny_models import make_tiny_model

from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine
from mlx_serving.actors.messages.values import Stopping
from mlx_serving.config.schema import Generation, PrefixCache

FIRST = [*range(1, 151)]
OTHER = [*FIRST[:75], *range(200, 240)]
"""It parts from the first prompt five tokens after that one's first message ended."""
SEGMENTS = (70, 140)
NO_DISK = attrs.evolve(Generation(max_rows=4), prefix_cache=PrefixCache(disk_bytes=0))


@pytest.fixture(scope="module", params=["llama", "gemma3_text", "lfm2", "mamba2"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlxEngine]:
    folder: Path = tmp_path_factory.mktemp("models") / request.param
    made = loaded(make_tiny_model(folder, request.param), NO_DISK)
    yield made
    made.close()


def test_another_prompt_is_taken_up_where_the_common_message_ended(engine: MlxEngine) -> None:
    engine.clear_cache("all")
    driver = Driver(engine)
    driver.submit(FIRST, segments=SEGMENTS)
    driver.run()
    other = driver.submit(OTHER, segments=SEGMENTS[:1])
    driver.run()
    end = driver.sequences[other].end
    assert end is not None
    assert end.cached_tokens == (70 if engine._reuse.needs_segments else 75)
    assert driver.ids([other]) == [mlx_lm_greedy(engine, OTHER, 8)[0]]


def test_what_was_prefilled_for_no_answer_is_reused(engine: MlxEngine) -> None:
    engine.clear_cache("all")
    driver = Driver(engine)
    warm = driver.submit(FIRST, stopping=Stopping(max_tokens=0))
    driver.run()
    asked = driver.submit([*FIRST, 7, 8, 9])
    driver.run()
    ends = [driver.sequences[each].end for each in (warm, asked)]
    assert [end.cached_tokens for end in ends if end is not None] == [0, len(FIRST) - 1]
    assert driver.ids([asked]) == [mlx_lm_greedy(engine, [*FIRST, 7, 8, 9], 8)[0]]


def test_another_salt_finds_nothing(engine: MlxEngine) -> None:
    engine.clear_cache("all")
    driver = Driver(engine)
    driver.submit(FIRST, cache_salt="one")
    driver.run()
    others = [driver.submit([*FIRST, 7], cache_salt=salt) for salt in ("two", "", "one")]
    driver.run()
    ends = [driver.sequences[each].end for each in others]
    assert [bool(end.cached_tokens) for end in ends if end is not None] == [False, False, True]
