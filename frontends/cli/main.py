"""The command `mlx-serving`: its commands, and what becomes of their errors."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from mlx_serving.frontends.cli.tree import CommandTree

COMMANDS = {
    "serve": ("serve", "Serve a model over HTTP."),
    "stdio": ("stdio", "Serve models to the program that started this one, by JSON-RPC on stdin and stdout."),
    "generate": ("generate", "Answer one prompt, from the command line or stdin."),
    "chat": ("chat", "Talk with a model."),
    "models": ("models", "Fetch, import, list, load and remove models."),
    "cache": ("cache", "Look at, empty and warm the prefix caches of the running server."),
    "adapters": ("adapters", "Add, list and remove LoRA adapters."),
    "status": ("status", "Show what the running server does."),
    "tokenize": ("tokenize", "Show the tokens of a text, from the command line or stdin."),
    "config": ("config", "Show and check the configuration."),
    "doctor": ("doctor", "Check this machine and say what to do about what is found."),
    "bench": ("bench", "Measure time to first token, inter-token latency and throughput."),
}


class Root(CommandTree):
    """The whole program: every error and interrupt ends here, as a line on stderr and an exit status."""

    def main(self, args: Sequence[str] | None = None, *others: Any, **extra: Any) -> NoReturn:
        try:
            outcome = super().main(args, *others, **{**extra, "standalone_mode": False, "color": _colour()})
        except click.ClickException as error:
            outcome = _refused(error)
        except click.Abort:
            outcome = 130
        except Exception as error:
            outcome = _failed(error)
        sys.exit(outcome if isinstance(outcome, int) else 0)


def _colour() -> bool | None:
    """What click does not look at by itself: NO_COLOR. Without it, colour follows the terminal."""
    return False if os.environ.get("NO_COLOR") else None


def _refused(error: click.ClickException) -> int:
    """What the command line itself does not understand."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return error.exit_code
    click.secho(f"error: {error.format_message()}", fg="red", err=True, color=_colour())
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is not None:
        click.secho(f"  → {context.command_path} --help", dim=True, err=True, color=_colour())
    return error.exit_code


def _failed(error: Exception) -> int:
    """Any error of the error tree; others are bugs and show their traceback."""
    from mlx_serving.actors.errors import ServingError, describe
    from mlx_serving.frontends.cli.failure import report

    if isinstance(error, ServingError):
        return report(error)
    traceback.print_exception(error)
    return report(describe(error).to_exception())


@click.command(cls=Root, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mlx-serving", message="%(version)s")
def cli() -> None:
    """Serve MLX models on this machine.

    Models, state and sockets live in MLX_SERVING_HOME (~/.mlx-serving unless set).
    Start with: mlx-serving serve
    """


def main() -> None:
    """Run the command line of `sys.argv`; always ends in SystemExit."""
    cli.main(prog_name="mlx-serving")


if __name__ == "__main__":
    main()
