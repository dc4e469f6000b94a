"""`mlx-serving models pull`: fetch a model."""

from __future__ import annotations

import rich_click as click

from mlx_serving.actors.models.store import ModelStore
from mlx_serving.frontends.cli.console import print_json
from mlx_serving.frontends.cli.progress import watched
from mlx_serving.frontends.cli.records import described, say_stored
from mlx_serving.frontends.cli.sources import home_folder


@click.command("pull", cls=click.RichCommand)
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print the model as JSON.")
def models_pull(name: str, as_json: bool) -> None:
    """Fetch a model by alias or Hugging Face id; does nothing if it is here.

    An interrupted pull goes on where it stopped.
    """
    with watched(name) as progress:
        record = ModelStore(home_folder()).pull(name, progress)
    if as_json:
        print_json(described(record))
    else:
        say_stored(record)
