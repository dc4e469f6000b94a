"""`mlx-serving adapters`: the LoRA adapters of this home."""

from __future__ import annotations

import click

from mlx_serving.frontends.cli.tree import CommandTree

COMMANDS = {
    "list": ("adapters_list", "List the adapters, stored and of the settings."),
    "add": ("adapters_add", "Take an adapter folder of mlx-lm or PEFT into this home."),
    "rm": ("adapters_rm", "Remove an adapter from this home."),
}


@click.group(cls=CommandTree, lazy=COMMANDS)
def adapters() -> None:
    """Add, list and remove LoRA adapters.

    A request chooses one as the model BASE:NAME.
    """
