"""What a load run measured, from the times of its requests: pure arithmetic."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import attrs


@attrs.frozen
class RequestRecord:
    """One request, monotonic seconds; `arrivals` pairs each arrival with its number of tokens."""

    started: float
    ended: float
    arrivals: tuple[tuple[float, int], ...]
    prompt_tokens: int = 0
    error: str | None = None

    @property
    def tokens(self) -> int:
        return sum(count for _, count in self.arrivals)


@attrs.frozen
class Distribution:
    """Quantiles of one measure, in seconds; all 0 when `count` is 0."""

    count: int
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


@attrs.frozen
class LoadReport:
    """A closed-loop run: rates over `seconds`, the time from the first submission to the last end."""

    clients: int
    requests: int
    errors: dict[str, int]
    seconds: float
    prompt_tokens: int
    completion_tokens: int
    tokens_per_second: float
    requests_per_second: float
    first_token: Distribution
    inter_token: Distribution
    total: Distribution


def summarize(records: Sequence[RequestRecord], clients: int) -> LoadReport:
    """The report of at least one record; requests that failed count among `errors` and in no distribution."""
    done = [record for record in records if record.error is None]
    seconds = max(record.ended for record in records) - min(record.started for record in records)
    tokens = sum(record.tokens for record in records)
    codes = [record.error for record in records if record.error is not None]
    return LoadReport(
        clients=clients,
        requests=len(records),
        errors={code: codes.count(code) for code in sorted(set(codes))},
        seconds=seconds,
        prompt_tokens=sum(record.prompt_tokens for record in done),
        completion_tokens=tokens,
        tokens_per_second=tokens / seconds if seconds > 0 else 0.0,
        requests_per_second=len(done) / seconds if seconds > 0 else 0.0,
        first_token=distribution(record.arrivals[0][0] - record.started for record in done if record.arrivals),
        inter_token=distribution(gap for record in done for gap in token_gaps(record.arrivals)),
        total=distribution(record.ended - record.started for record in done),
    )


def token_gaps(arrivals: Sequence[tuple[float, int]]) -> list[float]:
    """Seconds per token after the first arrival; tokens that arrive together share the wait for them."""
    gaps = []
    for (before, _), (now, count) in itertools.pairwise(arrivals):
        gaps += [(now - before) / count] * count
    return gaps


def distribution(values: Iterable[float]) -> Distribution:
    """Nearest-rank quantiles."""
    ordered = sorted(values)
    if not ordered:
        return Distribution(0, 0.0, 0.0, 0.0, 0.0, 0.0)
    p50, p90, p95, p99 = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.9, 0.95, 0.99))
    return Distribution(len(ordered), p50, p90, p95, p99, ordered[-1])
