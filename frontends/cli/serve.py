"""`mlx-serving serve`: the HTTP server."""

from __future__ import annotations

import rich_click as click
from rich.text import Text

from mlx_serving.actors.addresses import door_of
from mlx_serving.config.load import settings_file
from mlx_serving.config.schema import Settings
from mlx_serving.frontends.cli.console import out, table, warn
from mlx_serving.frontends.cli.fetching import ensure_stored
from mlx_serving.frontends.cli.sources import DRAFT_MODEL, Sources, configured, model_name

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@click.command(cls=click.RichCommand)
@click.argument("model", required=False, type=model_name)
@click.option("--host", help="Address to bind; 127.0.0.1 unless configured.")
@click.option("--port", type=int, help="Port to bind; 8080 unless configured, 0 picks a free one.")
@click.option("--api-key", help="Key that requests must carry; better kept in MLX_SERVING__HTTP__API_KEY.")
@click.option("--draft-model", type=model_name, help="Small model of the same vocabulary that proposes tokens.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Least level logged.")
@configured
@click.pass_context
def serve(
    ctx: click.Context,
    model: str | None,
    host: str | None,
    port: int | None,
    api_key: str | None,
    draft_model: str | None,
    log_level: str | None,
    sources: Sources,
) -> None:
    """Serve a model over HTTP.

    MODEL is a stored model, an alias, a Hugging Face id or a folder; the setting models.default
    (smollm2-135m) if not given. It is fetched first if it is not here. Ctrl-C lets running answers finish;
    a second one does not.
    """
    from mlx_serving.frontends.serve import Watch
    from mlx_serving.frontends.serve import serve as serve_until_stopped

    flags = {
        "http.host": host,
        "http.port": port,
        "http.api_key": api_key,
        DRAFT_MODEL: draft_model,
        "telemetry.log_level": log_level,
    }
    settings = sources.load_for(model, flags).settings
    _caution(settings, sources)
    ensure_stored(settings, sources.home)
    watch = Watch(lambda: sources.load_for(model, flags), settings_file(sources.home, sources.file).parent)
    ctx.exit(serve_until_stopped(settings, sources.home, lambda url: _announce(url, settings), watch))


def _caution(settings: Settings, sources: Sources) -> None:
    if settings.http.host not in _LOOPBACK and not settings.http.api_key:
        warn(f"anybody who reaches {settings.http.host} can use this server: set --api-key")
    if door_of(sources.home) is not None:
        warn(f"another server runs on {sources.home}; live commands will talk to the new one")


def _announce(url: str, settings: Settings) -> None:
    made = table("", "", "")
    made.show_header = False
    made.add_row(Text("ready", "bold green"), settings.models.default)
    for name, path in (("OpenAI API", "/v1"), ("health", "/health"), ("metrics", "/metrics")):
        made.add_row(name, Text(f"{url}{path}", "cyan"))
    made.add_row("API key", "required" if settings.http.api_key else "none")
    out.print(made)
    out.file.flush()
