"""From results to the lines of the table: which figure stands for what, and which objective it is held
against."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from tools.bench.around_rows import around_rows
from tools.bench.inside_rows import engine_rows, masks_rows, prefill_rows, prefix_rows, sampler_rows, speculation_rows
from tools.bench.kernels_rows import kernels_rows
from tools.bench.report import Row


def _times(ratio: dict[str, Any]) -> str:
    return f"{ratio['median']:.2f} times ({ratio['minimum']:.2f} to {ratio['maximum']:.2f})"


def _rate(spread: dict[str, Any]) -> str:
    return f"{spread['median']:.1f} tokens/s ({spread['minimum']:.1f} to {spread['maximum']:.1f})"


def _span(values: list[float], scale: float, unit: str) -> str:
    middle = statistics.median(values) * scale
    return f"{middle:,.1f} {unit} ({min(values) * scale:,.1f} to {max(values) * scale:,.1f})"


def pipeline_rows(result: dict[str, Any]) -> list[Row]:
    """Throughput of many streams, cost per token of one, idle time to first token, processor time per
    token."""
    rates = [each["tokens_per_second"] for each in result["many"]]
    paced = [each["tokens_per_second"] for each in result["paced"]]
    costs = [each["seconds_per_token"] for each in result["one"]]
    idle = [each["median"] for each in result["idle_first_token"]]
    return [
        Row(
            f"Scripted engine, {result['streams']} streams over HTTP",
            _span(rates, 1, "tokens/s"),
            "≥ 25,000",
            statistics.median(rates) >= 25_000,
        ),
        Row("the same, tokens per event on the wire", f"{_tokens_per_event(result['many']):.2f}"),
        Row("the same, processor time per token", _processor(result["many"])),
        Row(f"Scripted engine in steps of 2 ms, {result['streams']} streams", _span(paced, 1, "tokens/s")),
        Row("the same, tokens per event on the wire", f"{_tokens_per_event(result['paced']):.2f}"),
        Row("the same, processor time per token", _processor(result["paced"])),
        Row(
            "Scripted engine, one stream, time per token",
            _span(costs, 1e6, "µs"),
            "≤ 150",
            statistics.median(costs) <= 150e-6,
        ),
        Row(
            "Scripted engine, idle, time to first token",
            _span(idle, 1e3, "ms"),
            "≤ 5",
            statistics.median(idle) <= 5e-3,
        ),
    ]


def _tokens_per_event(runs: list[dict[str, Any]]) -> float:
    return float(statistics.median(run["tokens"] / run["events"] for run in runs))


def _processor(runs: list[dict[str, Any]]) -> str:
    roles = runs[0]["cpu_seconds"]
    shares = {role: statistics.median(run["cpu_seconds"][role] / run["tokens"] for run in runs) for role in roles}
    return ", ".join(f"{role} {share * 1e6:.1f} µs" for role, share in shares.items())


def compare_rows(result: dict[str, Any]) -> list[Row]:
    """Rates and ratios with one client and with many; the objectives are those against mlx_lm as it is
    installed (HTTP) and under the same BLAS (in process)."""
    clients = result["plan"]["clients"]
    precision = "a float32 copy of the half-precision model" if result["peers_in_float32"] else "the same model"
    rows = [Row("What mlx_lm runs in the next rows", precision)]
    rows += _contest(result["one_client"], "one client", {"in process with OpenBLAS": 1.0, "llama-server": 1.0})
    rows += _contest(result["many_clients"], f"{clients} clients", {"mlx_lm.server": 1.0, "llama-server": 1.0})
    for count, contest in result["mixed_clients"].items():
        rows += _contest(contest, f"{count} clients with mixed sampling", {"mlx_lm.server": 1.2})
    return rows


def _contest(contest: dict[str, Any], clients: str, objectives: dict[str, float]) -> list[Row]:
    rows = []
    for name, entry in contest.items():
        who = f"mlx_lm {name}" if name.startswith("in process") else name
        if entry["ratio"] is None:
            rows.append(Row(f"Decode, {clients}: {who}", _rate(entry["rate"])))
            continue
        least = objectives.get(name)
        met = None if least is None else entry["ratio"]["median"] >= least
        figure = f"{_times(entry['ratio'])}, theirs {_rate(entry['rate'])}"
        rows.append(
            Row(
                f"Decode, {clients}: this server in units of {who}",
                figure,
                f"≥ {least}" if least else "",
                met,
            )
        )
    return rows


def equality_rows(result: dict[str, Any]) -> list[Row]:
    """How many prompts came out as mlx_lm alone says."""
    count, equal, texts = result["prompts"], result["equal"], result["equal_streamed_texts"]
    return [
        Row("Greedy prompts equal to mlx_lm, token by token", f"{equal} of {count}", "all", equal == count),
        Row("the same streamed, by text", f"{texts} of {count}", "all", texts == count),
    ]


def memory_rows(result: dict[str, Any]) -> list[Row]:
    """Growth of each process."""
    requests, cancelled = result["requests"], result["cancelled"]
    return [
        Row(
            f"Memory of the {each['role']} after {requests:,} mixed requests, {cancelled:,} of them left",
            f"{each['rss']:+.1%} (RSS), {each['uss']:+.1%} (USS)",
            "within 3 %",
            abs(each["rss"]) <= 0.03,
        )
        for each in result["change"]
    ] + [Row("errors meanwhile", str(result["errors"]), "0", result["errors"] == 0)]


def slow_reader_rows(result: dict[str, Any]) -> list[Row]:
    """What neighbours felt, and whether nothing was lost."""
    before, during = result["neighbours_before"], result["neighbours_during"]
    figure = ", ".join(f"{key} {before[key] * 1e3:.2f} → {during[key] * 1e3:.2f} ms" for key in ("median", "p99"))
    unchanged = during["median"] <= 1.05 * before["median"] and during["p99"] <= 1.25 * before["p99"]
    complete = result["complete"] and not result["errors"]
    held_back = result["held_back_seconds"]
    return [
        Row(
            f"A reader stops for {result['stop_seconds']:.0f} s: its neighbours' inter-token time",
            figure,
            "median within 5 %, p99 within 25 %",
            unchanged,
        ),
        Row("the stopped stream ended after its neighbours", f"{held_back:.1f} s later", "> 0", held_back > 0),
        Row(
            "the stopped stream, read to its end",
            "complete" if complete else "not complete",
            "complete",
            complete,
        ),
    ]


def startup_rows(result: dict[str, Any]) -> list[Row]:
    """Waiting for help and for readiness."""
    helped = result["help"]
    figure = f"{helped['median']:.3f} s ({helped['minimum']:.3f} to {helped['maximum']:.3f})"
    rows = [Row("mlx-serving --help", figure, "< 0.3 s", helped["median"] < 0.3)]
    for name, waits in result["waits"].items():
        rows.append(Row(f"{name}: start until ready", f"{waits['ready']['median']:.2f} s"))
        rows.append(Row(f"{name}: start until the first answer", f"{waits['answer']['median']:.2f} s"))
        ratio, what = waits["first_to_tenth"], f"{name}: first token of the first streamed chat, in units of the tenth"
        wait = f"{1e3 * waits['first']['median']:.0f} ms, {_times(ratio)}"
        is_ours = name == "mlx-serving"
        rows.append(Row(what, wait, "≤ 1.25 times" if is_ours else "", ratio["median"] <= 1.25 if is_ours else None))
    return rows


def blas_rows(result: dict[str, Any]) -> list[Row]:
    """The gain of the fast BLAS."""
    prefill = f"Prefill of {result['tokens']} tokens over HTTP, without native kernels,"
    kinds = (("product", "Product 512 x 576 by 576 x 1536", "GFLOP/s"), ("prefill", prefill, "tokens/s"))
    return [Row(f"{what} with OpenBLAS, in units of without", _gain(result[key], unit)) for key, what, unit in kinds]


def _gain(pairs: dict[str, Any], unit: str) -> str:
    fast, plain = statistics.median(pairs["with_openblas"]), statistics.median(pairs["without"])
    return f"{_times(pairs['ratio'])}, {plain:.1f} → {fast:.1f} {unit}"


ROWS: dict[str, Callable[[dict[str, Any]], list[Row]]] = {
    "compare": compare_rows,
    "kernels": kernels_rows,
    "equality": equality_rows,
    "pipeline": pipeline_rows,
    "memory": memory_rows,
    "slow_reader": slow_reader_rows,
    "startup": startup_rows,
    "blas": blas_rows,
    "around": around_rows,
    "engine": engine_rows,
    "prefill": prefill_rows,
    "prefix": prefix_rows,
    "speculation": speculation_rows,
    "masks": masks_rows,
    "sampler": sampler_rows,
}
"""Rows of each benchmark, in the order of the table."""
