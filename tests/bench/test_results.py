"""Judging measurements and writing them down."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.bench import compare, equality, memory, report, rows, slow_reader
from tools.bench.header import header
from tools.bench.quantiles import Spread, quantile
from tools.bench.spec import Outcome


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 1))
def test_a_quantile_lies_within_the_samples_and_grows_with_the_share(samples: list[float], share: float) -> None:
    ordered = sorted(samples)
    assert ordered[0] <= quantile(ordered, share) <= ordered[-1]
    assert quantile(ordered, share / 2) <= quantile(ordered, share)


def test_a_spread_of_known_samples() -> None:
    spread = Spread.of([3.0, 1.0, 2.0])
    assert spread is not None
    assert (spread.minimum, spread.median, spread.maximum, spread.mean) == (1.0, 2.0, 3.0, 2.0)
    assert Spread.of([]) is None


_REFERENCE = {
    "tokens": ["a", "b", "c", "<end>"],
    "text": "abc",
    "margins": [1.0, 0.001, 2.0, 1.0],
    "finish_reason": "stop",
    "prompt_tokens": 7,
}


def _outcome(tokens: list[str], reason: str = "stop") -> Outcome:
    logprobs = tuple({"token": token} for token in tokens)
    return Outcome(0, 0.0, 1.0, texts=("".join(tokens),), finish_reason=reason, logprobs=logprobs)


def test_equal_tokens_are_equal_with_or_without_the_end_token() -> None:
    assert equality.judge(0, _REFERENCE, _outcome(["a", "b", "c"])).equal


def test_the_first_different_token_is_named_with_its_margin() -> None:
    comparison = equality.judge(0, _REFERENCE, _outcome(["a", "x", "c"]))
    assert not comparison.equal
    assert (comparison.difference, comparison.expected, comparison.found) == (1, "b", "x")
    assert comparison.margin == 0.001


def test_an_answer_that_goes_on_or_ends_early_differs() -> None:
    assert equality.judge(0, _REFERENCE, _outcome(["a", "b"])).difference == 2
    assert equality.judge(0, _REFERENCE, _outcome(["a", "b", "c", "d"], "length")).difference == 3


def _member(pid: int, rss: int) -> dict[str, object]:
    return {"role": "host", "pid": pid, "cpu_seconds": 0.0, "rss": rss, "uss": rss // 2}


def test_memory_growth_is_a_share_of_what_was_there() -> None:
    (change,) = memory.change([_member(1, 200)], [_member(1, 210)])
    assert change["rss"] == pytest.approx(0.05)


def test_a_replaced_process_makes_the_memory_figure_void() -> None:
    with pytest.raises(RuntimeError, match="processes changed"):
        memory.change([_member(1, 200)], [_member(2, 200)])


def test_neighbours_are_judged_before_and_during_the_stop() -> None:
    stopped = Outcome(0, 0.0, 9.0, texts=("t",), tokens=1, times=(1.0, 8.0), paused_at=4.0)
    neighbour = Outcome(1, 0.0, 9.0, times=(1.0, 2.0, 3.0, 4.5, 6.5, 8.5))
    undisturbed = Outcome(0, 0.0, 5.0, texts=("t",), tokens=1)
    verdict = slow_reader.judge([stopped, neighbour], undisturbed, stop_seconds=3.0)
    assert verdict["complete"]
    assert verdict["neighbours_before"]["maximum"] == 1.0
    assert verdict["neighbours_during"]["maximum"] == 2.0


def test_the_table_replaces_only_what_stands_between_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write_between_markers(page, "new")
    assert page.read_text() == f"before\n{report.BEGIN}\nnew\n{report.END}\nafter\n"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="has no"):
        report.write_between_markers(page, "new")


def test_a_saved_result_carries_machine_versions_and_native_choice(tmp_path: Path) -> None:
    report.save(tmp_path, "pipeline", header(), {"x": 1})
    (document,) = report.read_all(tmp_path, "pipeline")
    assert document["result"] == {"x": 1}
    assert {"machine", "versions", "native", "python", "commit"} <= set(document)
    assert report.read_all(tmp_path, "compare") == []


def test_the_table_names_what_was_taken_at_which_commit() -> None:
    documents = [
        {**header(), "benchmark": name, "commit": commit}
        for name, commit in (("compare", "a"), ("kernels", "b"), ("kernels", "b"))
    ]
    table = report.markdown([], documents)
    assert "at commit a: compare\n" in table
    assert "at commit b: kernels\n" in table
    with pytest.raises(ValueError, match="different machines"):
        report.markdown([], [documents[0], {**documents[1], "python": "2.7"}])


def test_ratios_are_taken_within_each_repetition() -> None:
    judged = compare.judge({"ours": [10.0, 20.0, 30.0], "theirs": [10.0, 10.0, 20.0]}, "ours")
    assert judged["ours"]["ratio"] is None
    ratio = judged["theirs"]["ratio"]
    assert (ratio["minimum"], ratio["median"], ratio["maximum"]) == (1.0, 1.5, 2.0)


def _compared(ratio: float) -> dict[str, object]:
    single = {"mlx-serving": [10.0 * ratio] * 2, "in process with OpenBLAS": [10.0] * 2}
    batched = {"mlx-serving": [10.0 * ratio] * 2, "mlx_lm.server": [10.0] * 2}
    return {
        "plan": {"clients": 8},
        "peers_in_float32": True,
        "one_client": compare.judge(single, "mlx-serving"),
        "many_clients": compare.judge(batched, "mlx-serving"),
        "mixed_clients": {"32": compare.judge(batched, "mlx-serving")},
    }


def test_the_table_says_which_objectives_were_met(tmp_path: Path) -> None:
    verdicts = [row.verdict for row in rows.compare_rows(_compared(0.98))]
    assert verdicts == ["", "", "no", "", "no", "", "no"]
    report.save(tmp_path, "compare", header(), _compared(1.2))
    (document,) = report.read_all(tmp_path, "compare")
    table = report.markdown(rows.ROWS["compare"](document["result"]), [document])
    assert "this server in units of mlx_lm.server | 1.20 times (1.20 to 1.20)" in table
    assert "no |" not in table
