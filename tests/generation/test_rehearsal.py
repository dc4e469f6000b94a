"""What is rehearsed while a model is loaded on a GPU, here on the CPU."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
from support.engine_driver import GREEDY, Driver
from support.tiny_models import make_tiny_model

from mlx_serving.actors.generation.mlx_engine import engine as engine_module
from mlx_serving.actors.generation.mlx_engine import rehearsal
from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine
from mlx_serving.actors.generation.mlx_engine.slab_program import COMPILED_WIDTHS
from mlx_serving.actors.messages.values import Stopping, pack_ids
from mlx_serving.actors.models.tokenizer import TextTokenizer
from mlx_serving.config.schema import Generation, Speculation
from mlx_serving.native import kernels

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="nothing can compile steps")


def _engine(folder: Path, family: str, settings: Generation) -> MlxEngine:
    record = make_tiny_model(folder / "model", family)
    engine = MlxEngine(record, settings, TextTokenizer.load(record.path))
    engine.load()
    return engine


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mamba2"])
def test_a_rehearsed_engine_answers_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, family: str
) -> None:
    calls: list[int] = []
    rehearse = rehearsal.rehearse

    def noted(batch: object, rows: list[object], *rest: object) -> None:
        rehearse(batch, rows, *rest)  # type: ignore[arg-type]
        calls.append(len(rows))

    monkeypatch.setattr(rehearsal, "rehearse", noted)
    said = []
    for is_gpu in (False, True):
        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
            patch.setattr(engine_module, "is_cpu", lambda is_gpu=is_gpu: not is_gpu)
            engine = _engine(tmp_path / str(is_gpu), family, Generation())
        driver = Driver(engine)
        sequence = driver.submit([1, 2, 3, 4], GREEDY, Stopping(max_tokens=12, ignore_eos=True))
        driver.run()
        said.append(driver.sequences[sequence].ids)
        engine.close()
    assert said[0] == said[1]
    assert calls == [2]
    assert not [each for each in caplog.records if "rehearsal" in each.message]


@needs_compiler
def test_compiled_checks_are_as_wide_as_what_is_compiled(tmp_path: Path) -> None:
    stopping = Stopping(max_tokens=40, ignore_eos=True)
    plain = _engine(tmp_path / "plain", "llama_4bit", Generation(speculation=Speculation(mode="off")))
    driver = Driver(plain)
    first = driver.submit([1, 2, 3], GREEDY, stopping)
    driver.run()
    expected = driver.sequences[first].ids
    plain.close()
    engine = _engine(
        tmp_path / "compiled", "llama_4bit", Generation(compile_steps="on", speculation=Speculation(mode="lookup"))
    )
    assert engine._decoding.batch.cache.writes_in_place or kernels.choice.choice == "pure"
    speculator = engine._decoding.speculator
    assert speculator is not None
    speculator._costs.plain = lambda rows: 1.0  # type: ignore[method-assign]
    speculator._costs.wide = lambda rows, width: 1.0  # type: ignore[method-assign]
    driver = Driver(engine)
    second = driver.submit([1, 2, 3], GREEDY, stopping, prediction_ids=pack_ids(expected[:13]))
    widths = set()
    while engine.pending:
        driver.step()
        widths.add(engine._decoding.checked.width)
    assert driver.sequences[second].ids == expected
    assert widths > {1}
    if engine._decoding.batch.cache.writes_in_place:
        assert widths <= set(COMPILED_WIDTHS)
    engine.close()
