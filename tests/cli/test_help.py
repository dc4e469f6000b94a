import importlib
import os
import pty
import subprocess
import sys
from io import FileIO
from pathlib import Path

import pytest
import rich_click as click
from cli.conftest import Run, Shell
from support.server import COMMAND

from mlx_serving.frontends.cli import main, models
from mlx_serving.frontends.cli.tree import CommandTree

HELP = [*COMMAND, "--help"]
LAZY = [*main.COMMANDS.items(), *((f"models {name}", entry) for name, entry in models.COMMANDS.items())]


def processor_seconds_of(command: list[str]) -> float:
    """Unlike the time on the clock it is the same on a busy machine."""
    before = os.times()
    subprocess.run(command, capture_output=True, check=True, timeout=60)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_help_takes_less_than_three_tenths_of_a_second() -> None:
    assert min(processor_seconds_of(HELP) for _ in range(5)) < 0.3


def test_help_imports_nothing_of_the_runtime() -> None:
    command = [sys.executable, "-X", "importtime", *HELP[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    ours = {name for name in loaded if name.startswith("mlx_serving.")}
    assert not {"attr", "zmq", "msgpack", "yaml", "mlx", "starlette", "tokenizers"} & loaded
    assert ours <= {"mlx_serving.frontends", "mlx_serving.frontends.cli", "mlx_serving.frontends.cli.tree"}


@pytest.mark.parametrize(("name", "entry"), LAZY, ids=[name for name, _ in LAZY])
def test_every_command_is_found_where_the_help_page_says(name: str, entry: tuple[str, str]) -> None:
    module, line = entry
    command = getattr(importlib.import_module(f"mlx_serving.frontends.cli.{module}"), module)
    assert isinstance(command, click.Command)
    assert command.name == name.split()[-1]
    assert (command.help or "").splitlines()[0] == line


@pytest.mark.parametrize("words", [(), *((name,) for name in main.COMMANDS), ("models", "import")])
def test_every_command_explains_itself(shell: Shell, words: tuple[str, ...]) -> None:
    shown = shell(*words, "--help")
    assert shown.exit_code == 0
    assert "Usage: mlx-serving" in shown.output


def test_a_misspelt_command_gets_a_near_name(shell: Shell) -> None:
    refused = shell("modles")
    assert refused.exit_code == 2
    assert "models" in refused.stderr


def test_a_misspelt_option_gets_a_near_name(shell: Shell) -> None:
    refused = shell("config", "show", "--orgin")
    assert refused.exit_code == 2
    assert "--origin" in refused.stderr
    assert refused.stdout == ""


def test_the_version_is_the_installed_one(shell: Shell) -> None:
    from importlib.metadata import version

    assert shell("--version").output.strip() == version("mlx-serving")


def test_without_a_command_the_help_page_comes_and_the_status_says_so(run: Run) -> None:
    done = run()
    assert done.returncode == 2
    assert "serve" in done.stdout + done.stderr


def test_help_without_a_terminal_has_no_colour(run: Run) -> None:
    assert "\033[" not in run("--help").stdout


def test_no_color_is_honoured_at_a_terminal_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(*arguments: str) -> str:
        ours, theirs = pty.openpty()
        with open(ours, "rb", buffering=0) as screen:
            command = [*COMMAND, *arguments]
            subprocess.run(command, stdin=theirs, stdout=theirs, stderr=theirs, check=False, timeout=60)
            os.close(theirs)
            return b"".join(iter(lambda: _read(screen), b"")).decode()

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\033[31m" in shown("statu")
    assert "\033[36m" in shown("--help")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033[3" not in shown("statu") + shown("--help") + shown("status")


def _read(screen: FileIO) -> bytes:
    """The next bytes; none once the other end is closed."""
    try:
        return screen.read(4096) or b""
    except OSError:
        return b""


def test_the_tree_lists_its_commands_in_their_order() -> None:
    assert isinstance(main.cli, CommandTree)
    with click.Context(main.cli) as context:
        assert main.cli.list_commands(context) == list(main.COMMANDS)
