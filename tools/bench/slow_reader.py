"""One reader stops for a while: what its neighbours feel, and whether its own answer is complete
afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs

from tools.bench.pipeline import request, scripted_server
from tools.bench.quantiles import Spread
from tools.bench.spec import Outcome, Request

_CHOICES = 16
"""Of the stopped request: a loopback connection holds some 4 MB before a server feels anything."""
_FASTEST = 250.0
"""Tokens a second of each row: slow enough for even neighbours."""
_LONGEST = 7800
"""Tokens of each row, within the context of the smallest model."""


def slow_reader(
    model: str, out: Path, stop_seconds: float, neighbours: int = 8, lead_seconds: float = 3.0
) -> dict[str, Any]:
    """The reader reads for `lead_seconds`, stops, and goes on; the neighbours stream throughout."""
    rate = min(_FASTEST, _LONGEST / (lead_seconds + stop_seconds))
    length = int(rate * (lead_seconds + stop_seconds))
    stopped = _request(length, "Count.", n=_CHOICES)
    pausing = attrs.evolve(stopped, pause_after=int(lead_seconds * rate) * _CHOICES, pause_seconds=stop_seconds)
    with scripted_server(model, out, step_seconds=1 / rate) as server:
        undisturbed = server.drive([stopped], timeout=3600)[0]
        streams = [pausing] + [_request(length, f"Neighbour {i}.") for i in range(neighbours)]
        outcomes = server.drive(streams, clients=len(streams), keep_times=True, timeout=3600)
    return {
        "stop_seconds": stop_seconds,
        "tokens_per_row": length,
        **judge(outcomes, undisturbed, stop_seconds),
    }


def _request(tokens: int, prompt: str, n: int = 1) -> Request:
    plain = request(tokens, prompt)
    return attrs.evolve(plain, body={**plain.body, "n": n})


def judge(outcomes: Sequence[Outcome], undisturbed: Outcome, stop_seconds: float) -> dict[str, Any]:
    """The first outcome is the reader that stopped. `held_back_seconds`: how much later than its neighbours,
    which asked for as many tokens, it ended: above nothing means that the server did pause it."""
    stopped, *neighbours = outcomes
    if stopped.paused_at is None:
        raise RuntimeError("the reader never stopped: its answer was too short")
    begin, end = stopped.paused_at, stopped.paused_at + stop_seconds
    before = [gap for each in neighbours for gap in gaps_between(each.times, 0.0, begin)]
    during = [gap for each in neighbours for gap in gaps_between(each.times, begin, end)]
    return {
        "errors": [outcome.error for outcome in outcomes if outcome.error],
        "complete": stopped.error is None
        and stopped.texts == undisturbed.texts
        and stopped.tokens == undisturbed.tokens,
        "held_back_seconds": stopped.ended - max(each.ended for each in neighbours),
        "neighbours_before": _json(Spread.of(before)),
        "neighbours_during": _json(Spread.of(during)),
    }


def gaps_between(times: Sequence[float], begin: float, end: float) -> list[float]:
    """Gaps between events that both lie in the window."""
    inside = [time for time in times if begin <= time <= end]
    return [later - earlier for earlier, later in pairwise(inside)]


def _json(spread: Spread | None) -> dict[str, Any] | None:
    return spread.json() if spread is not None else None
