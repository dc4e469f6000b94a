"""A long prompt gets its turn however many short ones come."""

from __future__ import annotations

import itertools
from pathlib import Path

import attrs
import pytest
from support.engine_driver import Driver
from support.tiny_models import make_tiny_model

from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine
from mlx_serving.actors.messages.values import Stopping
from mlx_serving.actors.models.tokenizer import TextTokenizer
from mlx_serving.config.schema import Generation, PrefixCache, Speculation

BUDGET, SIDE_BY_SIDE, ROWS = 16, 2, 8
SETTINGS = Generation(
    max_rows=ROWS,
    prefill_tokens=BUDGET,
    max_prefills=SIDE_BY_SIDE,
    prefill_slowdown=1000.0,
    speculation=Speculation(mode="off"),
    prefix_cache=PrefixCache(enabled=False),
)
SHORT = list(range(1, 34))
"""As many as two budgets: each would take all of them for itself, and there is always one more."""
LONG = [number % 250 for number in range(600)]
FEW = Stopping(max_tokens=8, ignore_eos=True)


@pytest.mark.parametrize("family", ["llama", "llama_4bit", "mamba2"])
def test_a_long_prompt_says_its_first_token_while_a_short_one_comes_at_every_step(folder: Path, family: str) -> None:
    """Rows in slabs, with chunks that go through some layers at a time, and with a state instead of keys."""
    record = attrs.evolve(make_tiny_model(folder, family), context_length=1024)
    ticks = itertools.count()
    engine = MlxEngine(record, SETTINGS, TextTokenizer.load(record.path), clock=lambda: next(ticks) * 1e-3)
    engine.load()
    driver = Driver(engine)
    driver.submit(SHORT)
    driver.run()  # now it is known how long a step takes without a prompt beside it
    shorts = []

    def step_with_one_more() -> None:
        shorts.append(driver.submit(SHORT, stopping=FEW))
        driver.step()

    for _ in range(4 * ROWS):
        step_with_one_more()
    before = [each for each in shorts if not driver.sequences[each].is_over]
    assert len(before) > ROWS  # some wait for a place
    long = driver.submit(LONG, stopping=FEW)
    # Its share of each step's budget, once those that were there before it had theirs.
    share = BUDGET // SIDE_BY_SIDE
    most = len(LONG) // share + len(before) * (len(SHORT) // share + 1)
    steps = 0
    while not driver.sequences[long].ids:
        step_with_one_more()
        steps += 1
        assert steps <= most
    # It had to share every one of those steps: short ones were waiting all along, and were answered.
    assert steps > len(LONG) // BUDGET
    assert len(engine._prompts.waiting) > ROWS
    assert sum(driver.sequences[each].is_over for each in shorts) > len(before)
    engine.close()
