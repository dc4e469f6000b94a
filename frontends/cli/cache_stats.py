"""`mlx-serving cache stats`: what the prefix caches hold."""

from __future__ import annotations

import rich_click as click

from mlx_serving.actors.messages.admission import CacheStatsRequested
from mlx_serving.actors.messages.frontend import CacheReported
from mlx_serving.frontends.cli.cache_table import cache_table
from mlx_serving.frontends.cli.console import out, print_json
from mlx_serving.frontends.cli.door import running
from mlx_serving.frontends.cli.sources import Sources, configured


@click.command("stats", cls=click.RichCommand)
@click.option("-m", "--model", help="Only this model's replicas.")
@click.option("--json", "as_json", is_flag=True, help="Print the caches as a JSON list.")
@configured
def cache_stats(model: str | None, as_json: bool, sources: Sources) -> None:
    """Show what the prefix caches hold and what they were good for.

    Counts began when each replica started.
    """
    with running(sources) as session:
        report: CacheReported = session.ask(CacheStatsRequested(model))
    if as_json:
        print_json(report.replicas)
    else:
        out.print(cache_table(report))
