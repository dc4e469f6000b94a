"""`mlx-serving cache`: the prefix caches of the running server."""

from __future__ import annotations

import click

from mlx_serving.frontends.cli.tree import CommandTree

COMMANDS = {
    "stats": ("cache_stats", "Show what the prefix caches hold and what they were good for."),
    "clear": ("cache_clear", "Empty the prefix caches, or one tier of them."),
    "warm": ("cache_warm", "Prefill the warm prompts of the settings."),
}


@click.group(cls=CommandTree, lazy=COMMANDS)
def cache() -> None:
    """Look at, empty and warm the prefix caches of the running server."""
