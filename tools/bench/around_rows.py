"""From results of the work around the model to the lines of the table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tools.bench.report import Row


def around_rows(result: dict[str, Any]) -> list[Row]:
    """Each thing by each way, and how many times faster the last way is than the first."""
    return [
        *_tokenizer_rows(result["model"], result["tokenizer"]),
        Row(f"{result['model']}: text of a token", _ways(result["decoder"], 1e9, "ns")),
        Row("Stop strings, a token's piece", _ways(result["stops"], 1e9, "ns")),
        Row("Digests of a prompt of 100,000 tokens", _ways(result["digests"], 1e3, "ms")),
        *(row for rows, found in result["frames"].items() for row in _frame_rows(rows, found)),
        *(_pooling_row(rows, found) for rows, found in result["pooling"].items()),
        Row("A buffer for masks of 32 rows, new for each step → kept", _ways(result["masks"], 1e6, "µs")),
    ]


def _tokenizer_rows(model: str, result: Mapping[str, Any]) -> list[Row]:
    what = {"batch": "64 texts of 4,000 characters", "long": "one text of 100,000 characters"}
    rows = [
        Row(
            f"{model}: tokenising {what[name]}, `parallel_tokenizer` off → on",
            _ways(result[name]["seconds"], 1e3, "ms"),
        )
        for name in what
    ]
    rows.append(Row("the same long text: another thread stood still", _ways(result["standstill"], 1e3, "ms")))
    if not result["is_cut"]:
        rows.append(Row("the same long text", "was not cut: this tokenizer is not known to allow it"))
    return rows


def _frame_rows(rows: str, found: Mapping[str, Sequence[float]]) -> list[Row]:
    packing = {key: found[key] for key in ("packed by msgpack", "packed by a packer that is kept", "encoded")}
    unpacking = {key: seconds for key, seconds in found.items() if key not in packing}
    return [
        Row(f"Frame of {rows} rows, a row: message to bytes", _listed(packing)),
        Row(f"Frame of {rows} rows, a row: bytes to message", _listed(unpacking)),
    ]


def _pooling_row(rows: str, found: Mapping[str, Any]) -> Row:
    figure = _ways(found["seconds"], 1e9, "ns")
    counts, sizes = found["allocations"], found["bytes"]
    if counts["off"] is not None:
        figure += (
            f"; {counts['off']:.1f} → {counts['on']:.1f} allocations of {sizes['off']:,.0f} → {sizes['on']:,.0f} bytes"
        )
    return Row(f"From a token to its frame, {rows} rows, a token, `object_pooling` off → on", figure)


def _ways(seconds: Mapping[str, Sequence[float]], scale: float, unit: str) -> str:
    medians = [statistics.median(each) for each in seconds.values()]
    return f"{_listed(seconds, scale, unit)}: {medians[0] / medians[-1]:.2f} times"


def _listed(seconds: Mapping[str, Sequence[float]], scale: float = 1e9, unit: str = "ns") -> str:
    return ", ".join(f"{name} {_span(each, scale)} {unit}" for name, each in seconds.items())


def _span(values: Sequence[float], scale: float) -> str:
    least, middle, most = (each * scale for each in (min(values), statistics.median(values), max(values)))
    return f"{_short(middle)} ({_short(least)} to {_short(most)})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
