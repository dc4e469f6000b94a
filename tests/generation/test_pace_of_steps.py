"""What the engine tells the pace of prefill about its steps."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import pytest
from support.engine_driver import GREEDY, Driver
from support.tiny_models import make_tiny_model

from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine
from mlx_serving.actors.generation.mlx_engine.speculation import Speculator
from mlx_serving.actors.generation.pacing import PrefillPace
from mlx_serving.actors.generation.speculation.costs import StepCosts
from mlx_serving.actors.messages.values import Stopping, pack_ids
from mlx_serving.actors.models.record import ModelRecord
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
    chunks: list[tuple[int, int]] = []

    def observe(self: PrefillPace, seconds: float, prefilled: int, rows: int, before: int) -> None:
        seen.append(prefilled)
        chunks.extend([(prefilled, before)] if prefilled else [])

    monkeypatch.setattr(PrefillPace, "observe", observe)
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
    assert chunks == [(16, 0), (16, 16)]  # of which each is told with what was before it, not before the next
    engine.close()


def test_after_a_check_plain_steps_count_once_they_follow_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first ones have the host set going two steps, or none, before one is read."""
    record = make_tiny_model(tmp_path / "model", "llama")
    said = _said(record, Speculation(mode="off"), b"")[0]
    seen: list[int] = []
    monkeypatch.setattr(Speculator, "saw_step", lambda self, rows, width, seconds: seen.append(width))
    monkeypatch.setattr(StepCosts, "plain", lambda self, rows: 1.0)
    monkeypatch.setattr(StepCosts, "wide", lambda self, rows, width: 1.0)
    again, widths = _said(record, Speculation(mode="lookup", max_tokens=2), pack_ids(said))
    assert again == said
    plain_runs = [len(list(run)) for width, run in groupby(widths) if width == 1]
    assert plain_runs == [3]  # an audit
    assert seen.count(1) == sum(max(0, run - 2) for run in plain_runs)
    assert len(seen) - seen.count(1) == sum(width > 1 for width in widths)


def test_steps_of_rows_that_have_left_tell_nothing_of_their_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the last of them are read nothing more is set going."""
    record = make_tiny_model(tmp_path / "model", "llama")
    seen: list[int] = []
    monkeypatch.setattr(Speculator, "saw_step", lambda self, rows, width, seconds: seen.append(rows))
    said, _ = _said(record, Speculation(mode="lookup"), b"")
    assert len(said) == 60
    assert set(seen) == {1}


def _said(record: ModelRecord, speculation: Speculation, prediction: bytes) -> tuple[list[int], list[int]]:
    """The tokens of an answer, and the widths of the steps of its engine, 1 for a plain one."""
    settings = Generation(prefix_cache=PrefixCache(enabled=False), speculation=speculation)
    engine = MlxEngine(record, settings, TextTokenizer.load(record.path))
    engine.load()
    driver = Driver(engine)
    stopping = Stopping(max_tokens=60, ignore_eos=True)
    sequence = driver.submit([1, 2, 3], GREEDY, stopping, prediction_ids=prediction)
    driver.run_until(sequence, 1)
    widths = []
    while engine.pending:
        driver.step()
        widths.append(engine._decoding.checked.width)
    engine.close()
    return driver.sequences[sequence].ids, widths
