"""`mlx-serving models import`: make a model of a GGUF file, or take in a folder."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from mlx_serving.actors.models.store import ModelStore
from mlx_serving.frontends.cli.console import print_json
from mlx_serving.frontends.cli.progress import watched
from mlx_serving.frontends.cli.records import described, say_stored
from mlx_serving.frontends.cli.sources import home_folder


@click.command("import", cls=click.RichCommand)
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="Name of the model in this home.")
@click.option("--bits", type=int, help="Width of all weights; those of the file if not given. GGUF only.")
@click.option("--group-size", type=int, help="Weights that share a scale, with --bits. GGUF only.")
@click.option("--copy", is_flag=True, help="Copy a folder's files instead of linking them.")
@click.option("--json", "as_json", is_flag=True, help="Print the model as JSON.")
def models_import(source: Path, name: str, bits: int | None, group_size: int | None, copy: bool, as_json: bool) -> None:
    """Import a GGUF file or a model folder.

    Q4_0, Q4_1, Q5_0 and Q8_0 weights of a GGUF file are kept as they are; other kinds are quantised anew.
    """
    store = ModelStore(home_folder())
    with watched(name) as progress:
        if source.is_dir():
            if bits is not None or group_size is not None:
                raise click.UsageError("--bits and --group-size are for GGUF files")
            record = store.import_folder(source, name, copy=copy, progress=progress)
        else:
            if copy:
                raise click.UsageError("--copy is for folders")
            record = store.import_gguf(source, name, bits, group_size, progress)
    if as_json:
        print_json(described(record))
    else:
        say_stored(record)
