from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlx_serving.actors.errors import ConfigurationInvalid
from mlx_serving.config.home import serving_home


def test_the_home_folder_is_made_for_its_user_alone(tmp_path: Path) -> None:
    home = serving_home({"MLX_SERVING_HOME": str(tmp_path / "deep" / "home")})
    assert home == tmp_path / "deep" / "home"
    assert home.stat().st_mode & 0o777 == 0o700
    assert serving_home({"MLX_SERVING_HOME": str(home)}) == home


def test_without_a_variable_it_is_in_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert serving_home({}) == tmp_path / ".mlx-serving"
    assert serving_home({"MLX_SERVING_HOME": ""}) == tmp_path / ".mlx-serving"


def test_a_relative_home_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert serving_home({"MLX_SERVING_HOME": "here"}) == Path(os.getcwd()) / "here"


def test_a_home_that_is_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigurationInvalid, match="MLX_SERVING_HOME must be a folder"):
        serving_home({"MLX_SERVING_HOME": str(file)})
