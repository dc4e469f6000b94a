"""Prefix caches as a table."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from mlx_serving.actors.messages.frontend import CacheReported
from mlx_serving.actors.messages.values import CacheStats
from mlx_serving.frontends.cli.console import table
from mlx_serving.frontends.cli.figures import size

_NUMBERS = ("prefixes", "tokens", "memory", "disk", "lookups", "hits", "tokens reused", "from disk", "evicted")


def cache_table(report: CacheReported) -> Table:
    """A line for each replica."""
    made = table("Prefix caches", "model", "replica", *_NUMBERS, "dropped", right=(*_NUMBERS, "dropped"))
    for each in report.replicas:
        made.add_row(each.model, each.replica, *_cells(each.stats))
    return made


def _cells(stats: CacheStats) -> tuple[str | Text, ...]:
    if not stats.enabled:
        return (Text("off", "yellow"), *("" for _ in _NUMBERS))
    return (
        f"{stats.entries:,}",
        f"{stats.tokens:,}",
        _filled(stats.bytes, stats.limit_bytes),
        _filled(stats.disk_bytes, stats.disk_limit_bytes),
        f"{stats.lookups:,}",
        f"{stats.hits:,}",
        _share(stats.hit_tokens, stats.lookup_tokens),
        f"{stats.disk_hit_tokens:,}",
        f"{stats.evicted:,}",
        Text(f"{stats.dropped:,}", "red" if stats.dropped else ""),
    )


def _filled(used: int, limit: int) -> Text:
    if not limit:
        return Text("off", "dim")
    return Text(f"{size(used)} of {size(limit)}", "yellow" if used > 0.9 * limit else "")


def _share(reused: int, asked: int) -> Text:
    share = reused / asked if asked else 0.0
    return Text(f"{reused:,} ({share:.0%})", "green" if share >= 0.5 else "")
