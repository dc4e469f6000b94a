"""`mlx-serving adapters list`: the adapters that requests may choose."""

from __future__ import annotations

import rich_click as click

from mlx_serving.actors.models.adapter_store import AdapterStore
from mlx_serving.frontends.cli.console import err, note, out, print_json, table
from mlx_serving.frontends.cli.figures import size
from mlx_serving.frontends.cli.sources import Sources, configured

_NUMBERS = ("rank", "layers", "size")


@click.command("list", cls=click.RichCommand)
@click.option("--json", "as_json", is_flag=True, help="Print the adapters as a JSON list.")
@configured
def adapters_list(as_json: bool, sources: Sources) -> None:
    """List the adapters of this home and of the setting models.adapters."""
    store = AdapterStore(sources.home, sources.load().settings.models.adapters)
    infos, problems = [record.info() for record in store.list()], store.problems()
    if as_json:
        print_json(infos)
    elif infos:
        made = table("", "model", "form", *_NUMBERS, "source", right=_NUMBERS)
        for one in infos:
            made.add_row(
                f"{one.base}:{one.name}", one.form, str(one.rank), str(one.layers), size(one.bytes), one.source
            )
        out.print(made)
    elif not problems:
        note(f"no adapters in {store.folder}; add one with: mlx-serving adapters add FOLDER --base MODEL --name NAME")
    for name, problem in problems.items():
        err.print(f"{name} cannot be loaded: {problem}", style="yellow", markup=False, soft_wrap=True)
