"""`mlx-serving cache clear`: empty prefix caches."""

from __future__ import annotations

from typing import cast

import rich_click as click

from mlx_serving.actors.messages.admission import CacheClearRequested
from mlx_serving.actors.messages.frontend import CacheReported
from mlx_serving.actors.messages.values import CACHE_TIERS, CacheTier
from mlx_serving.frontends.cli.console import note, print_json
from mlx_serving.frontends.cli.door import running
from mlx_serving.frontends.cli.figures import size
from mlx_serving.frontends.cli.sources import Sources, configured


@click.command("clear", cls=click.RichCommand)
@click.option("--tier", type=click.Choice(CACHE_TIERS), default="all", show_default=True, help="What to empty.")
@click.option("-m", "--model", help="Only this model's replicas.")
@click.option("--json", "as_json", is_flag=True, help="Print what is held afterwards as a JSON list.")
@configured
def cache_clear(tier: str, model: str | None, as_json: bool, sources: Sources) -> None:
    """Empty the prefix caches of the running server, or one tier of them.

    Running answers keep what they use; later prompts are computed anew.
    """
    with running(sources) as session:
        report: CacheReported = session.ask(CacheClearRequested(cast(CacheTier, tier), model))
    if as_json:
        print_json(report.replicas)
        return
    for each in report.replicas:
        if not each.stats.enabled:
            note(f"{each.model} ({each.replica}) keeps no prefixes")
            continue
        held = f"{size(each.stats.bytes)} in memory and {size(each.stats.disk_bytes)} on disk are left"
        note(f"{each.model} ({each.replica}): cleared, {held}")
