"""`mlx-serving models unload`: end a model's replicas in the running server."""

from __future__ import annotations

import rich_click as click

from mlx_serving.actors.messages.admission import ModelUnloadRequested
from mlx_serving.frontends.cli.console import err, note
from mlx_serving.frontends.cli.door import running
from mlx_serving.frontends.cli.sources import Sources, configured


@click.command("unload", cls=click.RichCommand)
@click.argument("name")
@configured
def models_unload(name: str, sources: Sources) -> None:
    """Have the running server unload a model once its streams have ended."""
    with running(sources) as session, err.status(f"unloading {name}"):
        limit = sources.load().settings.admission.request_timeout
        session.ask(ModelUnloadRequested(name), timeout=limit)
    note(f"{name} is unloaded")
