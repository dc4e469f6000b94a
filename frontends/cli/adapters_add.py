"""`mlx-serving adapters add`: take an adapter folder into the store."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from mlx_serving.actors.models.adapter_store import AdapterStore
from mlx_serving.actors.models.store import ModelStore
from mlx_serving.frontends.cli.console import note, print_json
from mlx_serving.frontends.cli.figures import size
from mlx_serving.frontends.cli.sources import Sources, configured


@click.command("add", cls=click.RichCommand)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--base", required=True, help="The stored model that it was trained on.")
@click.option("--name", required=True, help="Its name: requests choose it as the model BASE:NAME.")
@click.option("--json", "as_json", is_flag=True, help="Print the adapter as JSON.")
@configured
def adapters_add(folder: Path, base: str, name: str, as_json: bool, sources: Sources) -> None:
    """Take an adapter folder of mlx-lm or PEFT into this home.

    Its layers must be linear layers of the base, with the same sizes. A running server knows it at once.
    """
    store = AdapterStore(sources.home, sources.load().settings.models.adapters)
    info = store.add(folder, ModelStore(sources.home).show(base), name).info()
    if as_json:
        print_json(info)
    else:
        note(f"{info.base}:{info.name} is here (rank {info.rank}, {info.layers} layers, {size(info.bytes)})")
