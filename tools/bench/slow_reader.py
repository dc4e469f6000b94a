"""One reader stops for a while: what its neighbours feel, and whether its own answer is complete
afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tools.bench.pipeline import request, scripted_server
from tools.bench.quantiles import Spread
from tools.bench.spec import Outcome

_STEP = 0.002
"""Seconds per step: fast enough that the stopped reader's sockets fill, slow enough for even neighbours."""


def slow_reader(
    model: str, out: Path, stop_seconds: float, neighbours: int = 8, lead_seconds: float = 3.0
) -> dict[str, Any]:
    """The reader reads for `lead_seconds`, stops, and goes on; the neighbours stream throughout."""
    rate = 1 / _STEP
    before, during = int(lead_seconds * rate), int(stop_seconds * rate)
    length = before + during + before
    stopped = request(length, pause_after=before, pause_seconds=stop_seconds)
    with scripted_server(model, out, step_seconds=_STEP) as server:
        undisturbed = server.drive([request(length)], timeout=3600)[0]
        streams = [stopped] + [request(length, prompt=f"Neighbour {i}.") for i in range(neighbours)]
        outcomes = server.drive(streams, clients=len(streams), keep_times=True, timeout=3600)
    return {
        "stop_seconds": stop_seconds,
        "tokens_per_stream": length,
        **judge(outcomes, undisturbed, stop_seconds),
    }


def judge(outcomes: Sequence[Outcome], undisturbed: Outcome, stop_seconds: float) -> dict[str, Any]:
    """The first outcome is the reader that stopped."""
    stopped, *neighbours = outcomes
    if stopped.paused_at is None:
        raise RuntimeError("the reader never stopped: its answer was too short")
    begin, end = stopped.paused_at, stopped.paused_at + stop_seconds
    before = [gap for each in neighbours for gap in gaps_between(each.times, 0.0, begin)]
    during = [gap for each in neighbours for gap in gaps_between(each.times, begin, end)]
    return {
        "errors": [outcome.error for outcome in outcomes if outcome.error],
        "complete": stopped.error is None
        and stopped.text == undisturbed.text
        and stopped.tokens == undisturbed.tokens,
        "stopped_stream_seconds": stopped.ended - stopped.started,
        "undisturbed_seconds": undisturbed.ended - undisturbed.started,
        "neighbours_before": _json(Spread.of(before)),
        "neighbours_during": _json(Spread.of(during)),
    }


def gaps_between(times: Sequence[float], begin: float, end: float) -> list[float]:
    """Gaps between events that both lie in the window."""
    inside = [time for time in times if begin <= time <= end]
    return [later - earlier for earlier, later in pairwise(inside)]


def _json(spread: Spread | None) -> dict[str, Any] | None:
    return spread.json() if spread is not None else None
