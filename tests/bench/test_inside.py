"""Benchmarks of the engine in process, on the smallest model."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from tools.bench import report
from tools.bench.header import header
from tools.bench.inside.child import MEASURES, carry_out
from tools.bench.inside.models import save_random_model, shape_of, subject
from tools.bench.inside.stage import joint_rate, mixed
from tools.bench.rows import ROWS

TINY = "random:tiny:4bit"


@pytest.mark.parametrize("name", ["prefix", "masks"])
def test_a_measurement_becomes_lines_of_the_table(name: str, tmp_path: Path) -> None:
    result = carry_out(name, TINY, quick=True)
    report.save(tmp_path, name, header(), result, result["model"])
    (document,) = report.read_all(tmp_path, name)
    rows = ROWS[name](document["result"])
    assert all(row.what.startswith(TINY) and row.figure for row in rows)
    assert [row for row in rows if row.verdict]


def test_every_measurement_has_lines() -> None:
    assert set(MEASURES) <= set(ROWS)


def test_random_weights_are_the_same_in_memory_and_in_a_folder(tmp_path: Path) -> None:
    save_random_model(TINY, tmp_path / "model")
    with subject(TINY) as ours, subject(str(tmp_path / "model")) as theirs:
        ids = mx.array([ours.ids(9, 1)])
        assert mx.array_equal(ours.reference(ids), theirs.reference(ids))


def test_a_model_that_there_is_not_is_named() -> None:
    with pytest.raises(ValueError, match=r"random:huge:bf16.*0\.5B"):
        shape_of("random:huge:bf16")


def test_the_joint_rate_counts_only_while_all_decode() -> None:
    assert joint_rate([[0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]]) == pytest.approx(2.0)
    with pytest.raises(RuntimeError, match="side by side"):
        joint_rate([[0.0, 1.0], [2.0, 3.0]])


def test_rows_of_a_busy_server_differ() -> None:
    assert len({repr(each) for each in mixed(8)}) == 8
    assert mixed(9)[8] == mixed(9)[0]
