"""`mlx-serving models show`: all that is known of one model."""

from __future__ import annotations

import rich_click as click

from mlx_serving.actors.models.store import ModelStore
from mlx_serving.frontends.cli.console import out, print_json, table
from mlx_serving.frontends.cli.figures import quantity, size
from mlx_serving.frontends.cli.records import described, width
from mlx_serving.frontends.cli.sources import home_folder


@click.command("show", cls=click.RichCommand)
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
def models_show(name: str, as_json: bool) -> None:
    """Show one model: folder, architecture, size, context length."""
    record = ModelStore(home_folder()).show(name)
    if as_json:
        print_json(described(record))
        return
    facts = {
        "name": record.name,
        "path": str(record.path),
        "source": record.source,
        "architecture": record.architecture,
        "parameters": f"{quantity(record.parameter_count)} ({record.parameter_count:,})",
        "weights": width(record),
        "size": size(record.bytes),
        "context": f"{record.context_length:,} tokens",
        "vocabulary": f"{record.vocab_size:,} tokens",
        "KV cache": f"{size(record.kv_bytes_per_token)} a token",
        "chat template": "yes" if record.has_chat_template else "no",
        "vision": "yes" if record.is_vision else "no",
        "fingerprint": record.fingerprint,
    }
    made = table("", "", "")
    made.show_header = False
    for key, value in facts.items():
        made.add_row(key, value)
    out.print(made)
