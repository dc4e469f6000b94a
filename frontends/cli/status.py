"""`mlx-serving status`: what the running server does now."""

from __future__ import annotations

import attrs
import rich_click as click
from rich.table import Table
from rich.text import Text

from mlx_serving.actors.addresses import urls_of
from mlx_serving.actors.messages.admission import StatusRequested
from mlx_serving.actors.messages.frontend import StatusReported
from mlx_serving.frontends.cli.console import out, print_json, table
from mlx_serving.frontends.cli.door import running
from mlx_serving.frontends.cli.figures import duration, last_use, quantity, size
from mlx_serving.frontends.cli.sources import Sources, configured

_COLOURS = {
    "ready": "green",
    "starting": "yellow",
    "loading": "yellow",
    "unloading": "yellow",
    "failed": "red",
}


@click.command(cls=click.RichCommand)
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@configured
def status(as_json: bool, sources: Sources) -> None:
    """Show what the running server does.

    Exits with 69 when none runs on this home.
    """
    with running(sources) as session:
        report: StatusReported = session.ask(StatusRequested())
    report = attrs.evolve(report, addresses=urls_of(sources.home))
    if as_json:
        print_json(report)
        return
    out.print(_headline(report))
    for part in (_actors(report), _models(report), _queue(report)):
        out.print()
        out.print(part)


def _headline(report: StatusReported) -> Text:
    state, colour = ("ready", "bold green") if report.ready else ("not ready", "bold yellow")
    if report.draining:
        state, colour = "draining", "bold yellow"
    line = Text.assemble(("mlx-serving ", "bold"), report.version, "  ", (state, colour))
    if report.reason:
        line.append(f" ({report.reason})")
    line.append(f"  up {duration(report.uptime)}, {size(report.memory_rss)}, restarts {report.restarts}")
    for address in report.addresses:
        line.append(f"\n{address}", "cyan")
    return line


def _actors(report: StatusReported) -> Table:
    made = table("Actors", "name", "state", "runs as", "pid", "restarts", "detail", right=("pid", "restarts"))
    for actor in report.actors:
        made.add_row(
            actor.name,
            Text(actor.state, _COLOURS.get(actor.state, "")),
            actor.placement,
            str(actor.pid),
            str(actor.restarts),
            Text(actor.detail),
        )
    return made


def _models(report: StatusReported) -> Table:
    numbers = ("parameters", "context")
    made = table("Models", "name", "state", *numbers, "replicas", "memory", "last use", right=numbers)
    for model in report.models:
        name = Text(model.info.name, "bold" if model.is_default else "")
        if model.pinned:
            name.append(" (pinned)", "dim")
        made.add_row(
            name.append(" (default)" if model.is_default else "", "dim"),
            Text(model.state, _COLOURS.get(model.state, "")),
            quantity(model.info.parameter_count),
            f"{model.info.context_length:,}",
            str(model.replicas),
            size(model.memory_bytes),
            last_use(model),
        )
    return made


def _queue(report: StatusReported) -> Table:
    made = table("Work", "waiting", "running", "paused", "oldest wait", "streams", "KV reserved", "shedding")
    queue = report.queue
    made.add_row(
        *(str(count) for count in (queue.waiting, queue.running, queue.paused)),
        duration(queue.oldest_wait),
        str(report.active_streams),
        size(queue.reserved_kv_bytes),
        Text(", ".join(report.shedding) or "none", "yellow" if report.shedding else ""),
    )
    return made
