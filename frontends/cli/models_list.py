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
from mlx_serving.frontends.cli.figures import last_use, quantity, size
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
        print_json([{**described(one), **_standing(served.get(one.name))} for one in records])
    elif records:
        made = table("", "name", "architecture", *_NUMBERS, "weights", "server", "memory", "last use", right=_NUMBERS)
        for one in records:
            counts = (quantity(one.parameter_count), size(one.bytes), f"{one.context_length:,}")
            made.add_row(one.name, one.architecture, *counts, width(one), *_columns(served.get(one.name)))
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


def _standing(model: ServedModel | None) -> dict[str, object]:
    """How a model stands in the server; state null when the server knows nothing of it."""
    if model is None:
        return {"state": None}
    return {
        "state": model.state,
        "memory_bytes": model.memory_bytes,
        "last_used": model.last_used,
        "pinned": model.pinned,
        "adapters": model.adapters,
    }


def _columns(model: ServedModel | None) -> tuple[Text, str, str]:
    if model is None:
        return Text(""), "", ""
    state = Text(model.state, "green" if model.state == "ready" else "yellow")
    return (state.append(", pinned", "dim") if model.pinned else state), size(model.memory_bytes), last_use(model)
