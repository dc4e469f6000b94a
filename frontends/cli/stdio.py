"""`mlx-serving stdio`: JSON-RPC with the program that started this one."""

from __future__ import annotations

import rich_click as click

from mlx_serving.frontends.cli.sources import DRAFT_MODEL, Sources, configured, model_name


@click.command(cls=click.RichCommand)
@click.option("--model", "-m", type=model_name, help="Model to serve; the setting models.default if not given.")
@click.option("--draft-model", type=model_name, help="Small model of the same vocabulary that proposes tokens.")
@configured
@click.pass_context
def stdio(ctx: click.Context, model: str | None, draft_model: str | None, sources: Sources) -> None:
    """Serve models to the program that started this one, by JSON-RPC on stdin and stdout.

    Both framings are understood: Content-Length headers and one object per line. Nothing else goes to stdout.
    """
    from mlx_serving.frontends.cli.fetching import ensure_stored
    from mlx_serving.frontends.serve_stdio import claim_stdio, serve_stdio

    pipes = claim_stdio()
    settings = sources.load_for(model, {DRAFT_MODEL: draft_model}).settings
    ensure_stored(settings, sources.home)
    ctx.exit(serve_stdio(settings, sources.home, pipes))
