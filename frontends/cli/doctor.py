"""`mlx-serving doctor`: what this machine is, what is wrong with it, and what to do."""

from __future__ import annotations

import rich_click as click
from rich.text import Text

from mlx_serving.actors.errors import ConfigurationInvalid
from mlx_serving.config.schema import Settings
from mlx_serving.frontends.cli.console import err, out, print_json, table
from mlx_serving.frontends.cli.finding import Finding
from mlx_serving.frontends.cli.machine import findings
from mlx_serving.frontends.cli.sources import Sources, configured

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@click.command(cls=click.RichCommand)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as a JSON list.")
@configured
@click.pass_context
def doctor(ctx: click.Context, as_json: bool, sources: Sources) -> None:
    """Check this machine and say what to do about what is found.

    Exits with 1 when something fails, with 0 when there are only warnings.
    """
    settings, rows = _settings(sources)
    with err.status("looking at this machine"):
        rows += findings(settings, sources.home)
    if as_json:
        print_json(rows)
    else:
        _print(rows)
    ctx.exit(1 if any(row.state == "fail" for row in rows) else 0)


def _settings(sources: Sources) -> tuple[Settings, list[Finding]]:
    """The settings, or the defaults when they cannot be read."""
    try:
        return sources.load().settings, [Finding("configuration", "ok", "valid")]
    except ConfigurationInvalid as error:
        advice = "correct it, then: mlx-serving config show"
        return Settings(), [Finding("configuration", "fail", error.message, advice)]


def _print(rows: list[Finding]) -> None:
    made = table("", "", "", "")
    made.show_header = False
    for row in rows:
        fact = Text(row.fact)
        if row.advice:
            fact.append(f"\n→ {row.advice}", _COLOURS[row.state])
        made.add_row(Text(row.state, _COLOURS[row.state]), row.subject, fact)
    out.print(made)
