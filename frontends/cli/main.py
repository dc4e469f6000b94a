"""The command `mlx-serving`: its commands, and what becomes of their errors."""

from __future__ import annotations

import sys
from typing import Any

import rich_click as click

from mlx_serving.frontends.cli.tree import CommandTree

COMMANDS = {
    "serve": ("serve", "Serve a model over HTTP."),
    "stdio": ("stdio", "Serve models to the program that started this one, by JSON-RPC on stdin and stdout."),
    "generate": ("generate", "Answer one prompt, from the command line or stdin."),
    "chat": ("chat", "Talk with a model."),
    "models": ("models", "Fetch, import, list, load and remove models."),
    "status": ("status", "Show what the running server does."),
    "tokenize": ("tokenize", "Show the tokens of a text, from the command line or stdin."),
    "config": ("config", "Show and check the configuration."),
    "doctor": ("doctor", "Check this machine and say what to do about what is found."),
    "bench": ("bench", "Measure time to first token, inter-token latency and throughput."),
}


class Root(CommandTree):
    """The whole program: every error ends here."""

    def invoke(self, ctx: click.Context) -> Any:
        from mlx_serving.actors.errors import ServingError
        from mlx_serving.frontends.cli.failure import report

        try:
            return super().invoke(ctx)
        except ServingError as error:
            ctx.exit(report(error))
        except KeyboardInterrupt:
            ctx.exit(130)


@click.command(cls=Root, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mlx-serving", message="%(version)s")
def cli() -> None:
    """Serve MLX models on this machine.

    Models, state and sockets live in MLX_SERVING_HOME (~/.mlx-serving unless set).
    Start with: mlx-serving serve
    """


def main() -> None:
    """Run the command line of `sys.argv`; always ends in SystemExit."""
    sys.exit(cli.main(prog_name="mlx-serving"))


if __name__ == "__main__":
    main()
