"""What a replica reports of its steps: gathered for a while, so that telemetry costs nothing per token. Pure."""

from __future__ import annotations

from collections import Counter

from mlx_serving.actors.generation.engine import StepReport
from mlx_serving.actors.messages.telemetry import Counted, StepsCompleted
from mlx_serving.actors.messages.values import CacheStats

REPORT_SECONDS = 0.1
"""Steps of this long share one report."""


def rounded(value: float) -> float:
    """To two significant digits: what histograms and quantiles can tell apart."""
    return float(f"{value:.2g}")


class StepAccount:
    """The steps since the last report."""

    def __init__(self, replica: str, model: str) -> None:
        self._replica = replica
        self._model = model
        self._since: float | None = None
        self._last_tokens_at: float | None = None
        self._seconds: Counter[float] = Counter()
        self._rows: Counter[float] = Counter()
        self._gaps: Counter[float] = Counter()
        self._accepted: Counter[float] = Counter()
        self._prefixes: CacheStats | None = None
        self._tokens = self._prefill_tokens = self._drafted = self._active_bytes = self._cache_bytes = 0

    def add(self, report: StepReport, started: float, ended: float, goes_on: bool) -> None:
        """Count one step. `goes_on`: rows are left, so the time to their next token counts as a gap."""
        if self._since is None:
            self._since = started
        self._seconds[rounded(ended - started)] += 1
        self._tokens += report.tokens
        self._prefill_tokens += report.prefill_tokens
        self._drafted += report.drafted
        self._accepted.update(map(float, report.accepted))
        self._active_bytes, self._cache_bytes = report.active_bytes, report.cache_bytes
        self._prefixes = report.prefixes
        if report.rows:
            self._rows[float(report.rows)] += 1
            if self._last_tokens_at is not None:
                self._gaps[rounded(ended - self._last_tokens_at)] += report.rows
            self._last_tokens_at = ended
        if not goes_on:
            self._last_tokens_at = None

    def due(self, now: float, goes_on: bool) -> bool:
        """Whether it is time for a report."""
        return self._since is not None and (not goes_on or now - self._since >= REPORT_SECONDS)

    def take(self) -> StepsCompleted:
        """The report, and a fresh start."""
        report = StepsCompleted(
            self._replica,
            self._model,
            _counted(self._seconds),
            _counted(self._rows),
            _counted(self._gaps),
            self._tokens,
            self._prefill_tokens,
            self._active_bytes,
            self._cache_bytes,
            self._drafted,
            _counted(self._accepted),
            self._prefixes,
        )
        self._clear()
        return report

    def _clear(self) -> None:
        self._since = None
        for counts in (self._seconds, self._rows, self._gaps, self._accepted):
            counts.clear()
        self._tokens = self._prefill_tokens = self._drafted = 0


def _counted(counts: Counter[float]) -> tuple[Counted, ...]:
    return tuple(Counted(value, times) for value, times in counts.items())
