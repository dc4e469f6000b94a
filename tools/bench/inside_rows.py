"""From results of the engine in process to the lines of the table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from tools.bench.report import Row

_LEAST = {"1": 1.0, "8 mixed": 1.2, "32 mixed": 1.2}


def engine_rows(result: dict[str, Any]) -> list[Row]:
    """Decode rates, ours in units of mlx_lm's, and what each switch gives."""
    rows = []
    for case, contest in result.items():
        if case == "1" or case.endswith((" greedy", " mixed")):
            rows += _contest(f"{result['model']}: decode, {_rows_of(case)}", contest, _LEAST.get(case))
    beside = result["a long row among short ones"]
    share = beside["beside_long"] / beside["beside_short"]
    what = f"{result['model']}: seven short rows beside a row of {beside['long_prompt_tokens']:,} tokens"
    return [_device(result), *rows, Row(what, f"{share:.2f} of their speed beside a short one")]


def _rows_of(case: str) -> str:
    count, _, sampling = case.partition(" ")
    return "one row, greedy" if count == "1" else f"{count} rows, {sampling}"


def _contest(what: str, contest: Mapping[str, Any], least: float | None) -> list[Row]:
    ours = contest["mlx-serving"]["rate"]
    rows = [Row(what, f"{ours['median']:,.1f} tokens/s ({ours['minimum']:,.1f} to {ours['maximum']:,.1f})")]
    for name, entry in contest.items():
        ratio = entry["ratio"]
        if name == "mlx_lm":
            met = None if least is None else ratio["median"] >= least
            theirs = f"{_times(ratio)}, theirs {entry['rate']['median']:,.1f} tokens/s"
            rows.append(Row(f"{what}: in units of mlx_lm", theirs, f"≥ {least}" if least else "", met))
        elif ratio is not None:
            rows.append(Row(f"{what}: in units of {name}", _times(ratio)))
    return rows


def prefill_rows(result: dict[str, Any]) -> list[Row]:
    """Inter-token times during a prefill, against those before it."""
    rows = []
    ways = {name: runs for name, runs in result.items() if isinstance(runs, list)}
    for name, runs in ways.items():
        ratio, first = (statistics.median(run[key] for run in runs) for key in ("ratio", "first_token"))
        idle, during = (statistics.median(run[key]["p99"] for run in runs) * 1e3 for key in ("idle", "during"))
        figure = f"p99 {idle:.1f} → {during:.1f} ms, {ratio:.2f} times; its first token after {first:.2f} s"
        what = f"{result['model']}: {result['streams']} streams while {result['prompt_tokens']:,} tokens are prefilled"
        is_ours = name == "paced"
        rows.append(Row(f"{what}, {name}", figure, "≤ 3 times" if is_ours else "", ratio <= 3 if is_ours else None))
    return [_device(result), *rows]


def prefix_rows(result: dict[str, Any]) -> list[Row]:
    """Times to the first token, and the share of a chat that was not computed again."""
    cold = statistics.median(result["cold"])
    what = f"{result['model']}: first token, {result['shared_tokens']:,} tokens"
    rows = [_device(result), Row(f"{what}, new", f"{cold * 1e3:,.0f} ms")]
    for key, name, most in (
        ("shared", "as an earlier request's", 0.15),
        ("restarted", "from disk after a restart", 0.35),
    ):
        ratio = result[f"ratio_{key}"]
        figure = f"{statistics.median(result[key]) * 1e3:,.0f} ms, {_times(ratio)}"
        rows.append(Row(f"{what}, {name}", figure, f"≤ {most} times", ratio["median"] <= most))
    rows.append(Row(f"{what}, as an earlier request's, cache off", f"{result['cache_off'] * 1e3:,.0f} ms"))
    chat = result["chat"]
    figure = f"{chat['reused']:.1%} (at most {chat['possible']:.1%} were known)"
    what = f"{result['model']}: prompt tokens re-used in a chat of {chat['turns']} turns"
    return [*rows, Row(what, figure, "≥ 95 %", chat["reused"] >= 0.95)]


def masks_rows(result: dict[str, Any]) -> list[Row]:
    """Step time with masks."""
    ratio = result["ratio"]
    figure = f"{statistics.median(result['free']) * 1e3:.2f} → {statistics.median(result['guided']) * 1e3:.2f} ms"
    what = f"{result['model']}: a step of {result['rows']} rows, free → held to a JSON Schema"
    return [_device(result), Row(what, f"{figure}, {_times(ratio)}", "≤ 1.05 times", ratio["median"] <= 1.05)]


def sampler_rows(result: dict[str, Any]) -> list[Row]:
    """What a draw takes, and its share of a step."""
    medians = {name: statistics.median(each) for name, each in result["seconds"].items()}
    what = f"{result['model']}: draw for {result['rows']} rows, mixed, of {result['vocabulary']:,} tokens"
    rows = [_device(result), Row(f"{what}, by MLX's operations", _part(medians["operations"], medians["step"]))]
    if "kernel" not in medians:
        return [*rows, Row(f"{what}, by the kernel", "it does not run here: there is nothing to compare")]
    share = medians["kernel"] / medians["step"]
    return [*rows, Row(f"{what}, by the kernel", _part(medians["kernel"], medians["step"]), "≤ 3 %", share <= 0.03)]


def _part(seconds: float, step: float) -> str:
    return f"{seconds * 1e6:,.0f} µs, {seconds / step:.1%} of a step"


_SPEEDUPS = {
    ("code", "draft"): 1.3,
    ("random text", "draft"): 1.3,
    ("edit a file, with prediction", "lookup"): 1.5,
    ("random text, with prediction", "lookup"): 1.5,
}


def speculation_rows(result: dict[str, Any]) -> list[Row]:
    """Speed with each way to propose, in units of plain decoding."""
    rows = [_device(result)]
    for task, found in result["tasks"].items():
        what = f"{result['model']}: {task}"
        rows.append(Row(f"{what}, plain", f"{statistics.median(found['rates']['off']):,.1f} tokens/s"))
        for mode, ratio in found["ratios"].items():
            drafts = found["drafts"][mode]
            least = _SPEEDUPS.get((task, mode), 0.95)
            figure = f"{_times(ratio)}; {drafts['accepted']:,} accepted, {drafts['rejected']:,} rejected"
            rows.append(Row(f"{what}, {mode}: in units of plain", figure, f"≥ {least}", ratio["median"] >= least))
    return rows


def _device(result: dict[str, Any]) -> Row:
    return Row(f"{result['model']}: in process on", result["device"])


def _times(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f} times ({ratio['minimum']:.2f} to {ratio['maximum']:.2f})"
