"""`mlx-serving models rm`: remove a model's files."""

from __future__ import annotations

import rich_click as click

from mlx_serving.actors.models.store import ModelStore
from mlx_serving.frontends.cli.console import note
from mlx_serving.frontends.cli.figures import size
from mlx_serving.frontends.cli.sources import home_folder


@click.command("rm", cls=click.RichCommand)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def models_rm(names: tuple[str, ...]) -> None:
    """Remove a model from this home.

    Files that were only linked stay where they are; what an interrupted pull left is removed too.
    """
    store = ModelStore(home_folder())
    sizes = {record.name: record.bytes for record in store.list()}
    for name in names:
        store.remove(name)
        note(f"{name} is removed" + (f" ({size(sizes[name])})" if name in sizes else ""))
