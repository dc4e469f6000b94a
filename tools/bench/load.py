"""Runs a load in a process of its own and sums up what came back."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import orjson

from tools.bench.generator import Generator
from tools.bench.quantiles import Spread
from tools.bench.spec import Load, Outcome

_GRACE = 60.0
"""Seconds that the process may take beyond its longest request, for starting and parsing."""


@attrs.frozen
class Report:
    """What the generator process tells: outcomes in the order of the requests, processor seconds while it
    drove."""

    outcomes: tuple[Outcome, ...]
    cpu_seconds: float


def run(load: Load, deadline: float | None = None) -> list[Outcome]:
    """Carry out `load` in a fresh process. Raises TimeoutExpired after `deadline` seconds."""
    process = start(load)
    return list(finish(process, deadline or load.timeout * max(1, len(load.requests)) + _GRACE).outcomes)


def start(load: Load) -> subprocess.Popen[bytes]:
    """Start the process and hand it the load; `finish` collects the outcomes."""
    command = [sys.executable, str(Path(__file__).parent), "generator"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(orjson.dumps(attrs.asdict(load)) + b"\n")
    process.stdin.flush()
    return process


def finish(process: subprocess.Popen[bytes], deadline: float) -> Report:
    """Wait for the outcomes of a started load; the process never outlives this call."""
    try:
        output, _ = process.communicate(timeout=deadline)
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise RuntimeError(f"the load generator ended with status {process.returncode}")
    report = orjson.loads(output)
    return Report(tuple(Outcome(**fields) for fields in report["outcomes"]), report["cpu_seconds"])


def serve_generator() -> None:
    """The other end: a load on standard input, its outcomes on standard output."""
    load = Load.from_json(orjson.loads(sys.stdin.buffer.readline()))
    generator = Generator(load)
    outcomes = [attrs.asdict(outcome) for outcome in generator.run()]
    sys.stdout.buffer.write(orjson.dumps({"outcomes": outcomes, "cpu_seconds": generator.cpu_seconds}))


@attrs.frozen
class Summary:
    """A load in figures. Times in seconds, rates in tokens a second; None where nothing was measured."""

    requests: int
    errors: dict[str, int]
    cancelled: int
    tokens: int
    events: int
    """That carried text; one may carry several tokens."""
    seconds: float
    tokens_per_second: float
    stream_rate: Spread | None
    first_token: Spread | None
    inter_token: Spread | None
    total: Spread | None
    details: tuple[str, ...] = ()

    def json(self) -> dict[str, Any]:
        """As nested dictionaries."""
        return attrs.asdict(self)


def summarise(outcomes: Sequence[Outcome]) -> Summary:
    """`tokens_per_second`: all tokens over the whole time. `stream_rate`: of each stream, from its first
    token to its last."""
    good = [outcome for outcome in outcomes if outcome.error is None and not outcome.cancelled]
    tokens = sum(outcome.tokens or outcome.events for outcome in good)
    begin = min((each.started for each in outcomes), default=0.0)
    seconds = max((each.ended for each in outcomes), default=0.0) - begin
    return Summary(
        requests=len(outcomes),
        errors=dict(Counter(each.error for each in outcomes if each.error is not None)),
        cancelled=sum(each.cancelled for each in outcomes),
        tokens=tokens,
        events=sum(outcome.events for outcome in good),
        seconds=seconds,
        tokens_per_second=tokens / seconds if seconds else 0.0,
        stream_rate=Spread.of(rate for rate in map(_stream_rate, good) if rate is not None),
        first_token=Spread.of(each.first for each in good if each.first is not None),
        inter_token=Spread.of(gap for each in good for gap in each.gaps),
        total=Spread.of(each.ended - each.started for each in good),
        details=tuple(sorted({each.detail for each in outcomes if each.detail}))[:5],
    )


def _stream_rate(outcome: Outcome) -> float | None:
    if outcome.first is None or outcome.last is None or outcome.last <= outcome.first:
        return None
    return ((outcome.tokens or outcome.events) - 1) / (outcome.last - outcome.first)


def steady_rate(outcomes: Sequence[Outcome]) -> float | None:
    """Tokens a second of all streams together while every one of them was decoding: after the last first
    token and before the first last one, so that neither prefill nor a thinning batch counts. Needs
    `keep_times`."""
    streams = [outcome for outcome in outcomes if len(outcome.times) > 1]
    if not streams or len(streams) < len(outcomes):
        return None
    begin, end = max(each.times[0] for each in streams), min(each.times[-1] for each in streams)
    if end <= begin:
        return None
    shares = ((each, sum(begin < time <= end for time in each.times)) for each in streams)
    return sum(count * (each.tokens or each.events) / each.events for each, count in shares) / (end - begin)


def whole_rate(outcomes: Sequence[Outcome]) -> float:
    """Tokens a second from the first token of all streams to the last, prefill of later ones and a thinning batch
    included: no more than `steady_rate` would be."""
    begin, end = min(each.times[0] for each in outcomes), max(each.times[-1] for each in outcomes)
    return sum(each.tokens or each.events for each in outcomes) / (end - begin)
