"""`mlx-serving models`: everything about weights on disk, and which of them are loaded."""

from __future__ import annotations

import click

from mlx_serving.frontends.cli.tree import CommandTree

COMMANDS = {
    "list": ("models_list", "List the models of this home, and whether the server has them loaded."),
    "show": ("models_show", "Show one model: folder, architecture, size, context length."),
    "pull": ("models_pull", "Fetch a model by alias or Hugging Face id; does nothing if it is here."),
    "import": ("models_import", "Import a GGUF file or a model folder."),
    "rm": ("models_rm", "Remove a model from this home."),
    "load": ("models_load", "Have the running server load a model."),
    "unload": ("models_unload", "Have the running server unload a model once its streams have ended."),
    "pin": ("models_pin", "Have the running server keep a model loaded."),
    "unpin": ("models_unpin", "Let the running server unload a model again."),
}


@click.group(cls=CommandTree, lazy=COMMANDS)
def models() -> None:
    """Fetch, import, list, load and remove models."""
