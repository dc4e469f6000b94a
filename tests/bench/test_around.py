"""The benchmark of the work around the model, on a small tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.byte_level import trained

from tools.bench import around, report
from tools.bench.allocations import Allocations, allocations
from tools.bench.header import header
from tools.bench.rows import ROWS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    trained("qwen").save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_every_measurement_becomes_lines_of_the_table(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("_TEXTS", 4), ("_LONG", 20_000), ("_DIGEST_IDS", 1_000), ("_STEPS", 64), ("_MASK_STEPS", 2)):
        monkeypatch.setattr(around, name, value)
    result = around.around(folder, 2)
    report.save(tmp_path / "out", "around", header(), result)
    (document,) = report.read_all(tmp_path / "out", "around")
    rows = ROWS["around"](document["result"])
    assert len(rows) == 13
    assert all(row.what and row.figure for row in rows)


def test_the_result_says_when_a_tokenizer_is_not_cut(tmp_path: Path) -> None:
    backend = trained("qwen", 300)
    backend.add_tokens(["two words"])
    backend.save(str(tmp_path / "tokenizer.json"))
    source = "some words of text " * 2_000
    found = around._tokenizing(tmp_path, source * 8, 1)
    assert not found["is_cut"]


def test_what_is_allocated_is_counted() -> None:
    counted = allocations(lambda: [bytearray(1_000) for _ in range(50)])
    if counted is None:
        pytest.skip("there is no C compiler here, or no header of Python's")
    assert 100 <= counted.calls < 200
    assert 50_000 <= counted.bytes < 70_000
    nothing = [allocations(lambda: None) for _ in range(5)]
    assert all(isinstance(each, Allocations) for each in nothing)
    # Other threads of the process allocate too, now and then.
    assert min(each.calls for each in nothing if each is not None) < 5
