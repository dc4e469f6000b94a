"""`mlx-serving models load`: start a replica of a stored model in the running server."""

from __future__ import annotations

import rich_click as click

from mlx_serving.actors.messages.admission import ModelLoadRequested
from mlx_serving.actors.messages.frontend import ModelLoaded
from mlx_serving.frontends.cli.console import err, note, print_json
from mlx_serving.frontends.cli.door import running
from mlx_serving.frontends.cli.sources import Sources, configured, model_name


@click.command("load", cls=click.RichCommand)
@click.argument("name", type=model_name)
@click.option("--json", "as_json", is_flag=True, help="Print the model as JSON.")
@configured
def models_load(name: str, as_json: bool, sources: Sources) -> None:
    """Have the running server load a model.

    NAME is a stored model, an alias or a trusted folder. Other models' streams go on undisturbed.
    """
    with running(sources) as session, err.status(f"loading {name}"):
        limit = sources.load().settings.supervision.load_seconds
        answer: ModelLoaded = session.ask(ModelLoadRequested(name), timeout=limit)
    if as_json:
        print_json(answer.model)
    else:
        note(f"{answer.model.info.name} is {answer.model.state}")
