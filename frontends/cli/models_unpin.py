"""`mlx-serving models unpin`: let a model be unloaded again."""

from __future__ import annotations

import rich_click as click

from mlx_serving.actors.messages.admission import ModelPinRequested
from mlx_serving.frontends.cli.console import note
from mlx_serving.frontends.cli.door import running
from mlx_serving.frontends.cli.sources import Sources, configured


@click.command("unpin", cls=click.RichCommand)
@click.argument("name")
@configured
def models_unpin(name: str, sources: Sources) -> None:
    """Let the running server unload a model again.

    It does so when the model is idle or another one needs its memory.
    """
    with running(sources) as session:
        session.ask(ModelPinRequested(name, False))
    note(f"{name} is not pinned")
