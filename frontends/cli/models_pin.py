"""`mlx-serving models pin`: keep a model loaded in the running server."""

from __future__ import annotations

import rich_click as click

from mlx_serving.actors.messages.admission import ModelPinRequested
from mlx_serving.frontends.cli.console import note
from mlx_serving.frontends.cli.door import running
from mlx_serving.frontends.cli.sources import Sources, configured


@click.command("pin", cls=click.RichCommand)
@click.argument("name")
@configured
def models_pin(name: str, sources: Sources) -> None:
    """Have the running server keep a model loaded.

    Neither memory nor idleness unloads it, until it is unpinned or the server ends. The setting models.pinned does so
    from the start. A model that is not loaded stays so until it is asked for.
    """
    with running(sources) as session:
        session.ask(ModelPinRequested(name, True))
    note(f"{name} is pinned")
