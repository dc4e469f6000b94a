"""`mlx-serving models list`: what is stored, and what is loaded."""

from __future__ import annotations

import rich_click as click
from rich.text import Text

from mlx_serving.actors.addresses import door_of
from mlx_serving.actors.errors import ActorUnavailable
from mlx_serving.actors.messages.admission import ModelsRequested
from mlx_serving.actors.messages.frontend import ModelsListed, ServedModel
from mlx_serving.actors.models.store import ModelStore
from mlx_serving.frontends.cli.console import err, note, out, print_json, table
from mlx_serving.frontends.cli.door import running
from mlx_serving.frontends.cli.figures import quantity, size
from mlx_serving.frontends.cli.records import described, width
from mlx_serving.frontends.cli.sources import Sources, configured

_NUMBERS = ("parameters", "size", "context")


@click.command("list", cls=click.RichCommand)
@click.option("--json", "as_json", is_flag=True, help="Print the models as a JSON list.")
@configured
def models_list(as_json: bool, sources: Sources) -> None:
    """List the models of this home, and whether the server has them loaded."""
    store, served = ModelStore(sources.home), _served(sources)
    records = store.list()
    if as_json:
        print_json([{**described(one), "state": _state(served, one.name)} for one in records])
    elif records:
        made = table("", "name", "architecture", *_NUMBERS, "weights", "server", right=_NUMBERS)
        for one in records:
            state = _state(served, one.name)
            counts = (quantity(one.parameter_count), size(one.bytes), f"{one.context_length:,}")
            coloured = Text(state or "", "green" if state == "ready" else "yellow")
            made.add_row(one.name, one.architecture, *counts, width(one), coloured)
        out.print(made)
    else:
        note(f"no models in {store.folder}; fetch one with: mlx-serving models pull smollm2-135m")
    for name, problem in store.problems().items():
        err.print(f"{name} cannot be loaded: {problem}", style="yellow", markup=False, soft_wrap=True)


def _served(sources: Sources) -> dict[str, ServedModel]:
    """What the server has, by name; nothing when none runs or it does not answer."""
    if door_of(sources.home) is None:
        return {}
    try:
        with running(sources) as session:
            listed: ModelsListed = session.ask(ModelsRequested())
    except ActorUnavailable as error:
        note(f"the server does not say what it has loaded: {error.message}")
        return {}
    return {model.info.name: model for model in listed.models}


def _state(served: dict[str, ServedModel], name: str) -> str | None:
    return served[name].state if name in served else None
