import json
from pathlib import Path

import pytest
from cli.conftest import Shell

from mlx_serving.actors.models.store import ModelStore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that is no model."""
    made = tmp_path / "nothing"
    made.mkdir()
    return made


def test_an_empty_home_lists_nothing_and_says_how_to_fetch_a_model(shell: Shell) -> None:
    listed = shell("models", "list")
    assert (listed.exit_code, listed.stdout) == (0, "")
    assert "models pull" in listed.stderr
    assert json.loads(shell("models", "list", "--json").stdout) == []


@pytest.mark.parametrize("command", ["show", "rm", "pull"])
def test_an_unknown_model_gets_a_near_name(command: str, shell: Shell, home: Path) -> None:
    (home / "models" / "tiny-llama").mkdir(parents=True)
    refused = shell("models", command, "tiny-lama")
    assert refused.exit_code == 2
    assert "tiny-llama" in refused.stderr
    assert refused.stdout == ""


def test_a_damaged_model_is_listed_apart_with_its_reason(shell: Shell, home: Path) -> None:
    (home / "models" / "broken").mkdir(parents=True)
    listed = shell("models", "list")
    assert listed.exit_code == 0
    assert "broken cannot be loaded" in listed.stderr
    assert "broken" not in listed.stdout


def test_a_folder_without_a_model_is_refused_and_leaves_nothing(shell: Shell, folder: Path, home: Path) -> None:
    refused = shell("models", "import", str(folder), "--name", "mine")
    assert refused.exit_code in (1, 2)
    assert refused.stderr.startswith(("error:", "mine:"))
    assert ModelStore(home).list() == []


def test_a_file_that_is_not_gguf_is_refused(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"not a model at all")
    refused = shell("models", "import", str(file), "--name", "mine")
    assert refused.exit_code in (1, 2)
    assert "error:" in refused.stderr
    assert "Traceback" not in refused.output


def test_width_options_do_not_go_with_a_folder(shell: Shell, folder: Path) -> None:
    refused = shell("models", "import", str(folder), "--name", "mine", "--bits", "4")
    assert refused.exit_code == 2
    assert "GGUF" in refused.stderr


def test_copying_does_not_go_with_a_file(shell: Shell, tmp_path: Path) -> None:
    refused = shell("models", "import", str(tmp_path / "m.gguf"), "--name", "mine", "--copy")
    assert refused.exit_code == 2
    assert "folders" in refused.stderr


def test_an_import_needs_a_name(shell: Shell, folder: Path) -> None:
    refused = shell("models", "import", str(folder))
    assert refused.exit_code == 2
    assert "--name" in refused.stderr


@pytest.mark.parametrize("command", ["load", "unload"])
def test_loading_needs_a_running_server(command: str, shell: Shell) -> None:
    refused = shell("models", command, "smollm2-135m")
    assert refused.exit_code == 69
    assert "mlx-serving serve" in refused.stderr
