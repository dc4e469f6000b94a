"""`mlx-serving cache warm`: prefill named system prompts."""

from __future__ import annotations

import rich_click as click

from mlx_serving.actors.messages.admission import CacheWarmRequested
from mlx_serving.actors.messages.frontend import CacheWarmed
from mlx_serving.frontends.cli.console import err, note, out, print_json, table
from mlx_serving.frontends.cli.door import running
from mlx_serving.frontends.cli.figures import duration
from mlx_serving.frontends.cli.sources import Sources, configured

_NUMBERS = ("tokens", "held before", "took")


@click.command("warm", cls=click.RichCommand)
@click.argument("name", required=False)
@click.option("-m", "--model", help="Only on this model's replicas.")
@click.option("--json", "as_json", is_flag=True, help="Print the prompts as a JSON list.")
@configured
def cache_warm(name: str | None, model: str | None, as_json: bool, sources: Sources) -> None:
    """Prefill the warm prompt NAME of the server's settings, or all of them, into the prefix caches.

    The setting models.warm_prompts names them; each is prefilled at start as well.
    """
    with running(sources) as session, err.status("warming"):
        limit = sources.load().settings.admission.request_timeout
        answer: CacheWarmed = session.ask(CacheWarmRequested(name, model), timeout=limit)
    if as_json:
        print_json(answer.prompts)
    elif answer.prompts:
        made = table("", "prompt", "model", "replica", *_NUMBERS, right=_NUMBERS)
        for each in answer.prompts:
            counts = (f"{each.tokens:,}", f"{each.cached_tokens:,}", duration(each.seconds))
            made.add_row(each.name, each.model, each.replica, *counts)
        out.print(made)
    else:
        note("nothing to warm: name prompts in the setting models.warm_prompts")
