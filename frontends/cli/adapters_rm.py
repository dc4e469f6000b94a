"""`mlx-serving adapters rm`: remove adapters from the store."""

from __future__ import annotations

import rich_click as click

from mlx_serving.actors.models.adapter_store import AdapterStore, parted
from mlx_serving.frontends.cli.console import note
from mlx_serving.frontends.cli.sources import Sources, configured


@click.command("rm", cls=click.RichCommand)
@click.argument("names", nargs=-1, required=True, metavar="BASE:NAME...")
@configured
def adapters_rm(names: tuple[str, ...], sources: Sources) -> None:
    """Remove adapters from this home. Answers that use one go on."""
    store = AdapterStore(sources.home, sources.load().settings.models.adapters)
    for name in names:
        store.remove(*parted(name))
        note(f"{name} is removed")
