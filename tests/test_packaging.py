"""setup.cfg against the folders: what an editable installation forgives vanishes from a wheel."""

from __future__ import annotations

import configparser
import importlib.metadata
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("actors", "config", "frontends", "native")


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def lines(value: str) -> list[str]:
    return [line.strip() for line in value.splitlines() if line.strip() and not line.startswith("#")]


def package_folders() -> list[Path]:
    folders = {path.parent for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    return sorted(folders)


def test_every_folder_with_modules_is_a_package_of_setup_cfg() -> None:
    found = {".".join(("mlx_serving", *folder.relative_to(ROOT).parts)) for folder in package_folders()}
    assert set(lines(setup_cfg()["options"]["packages"])) == found


def test_every_package_folder_has_an_init_module() -> None:
    assert [folder for folder in package_folders() if not (folder / "__init__.py").is_file()] == []


def test_every_root_folder_is_mapped_typed_and_linked_for_type_checkers() -> None:
    mapping = dict(line.split(" = ") for line in lines(setup_cfg()["options"]["package_dir"]))
    assert mapping == {f"mlx_serving.{folder}": folder for folder in FOLDERS}
    for folder in FOLDERS:
        assert (ROOT / folder / "py.typed").is_file()
        link = ROOT / "tools/typing/mlx_serving" / folder
        assert link.is_symlink()
        assert not link.readlink().is_absolute()
        assert link.resolve() == ROOT / folder


def test_every_data_file_is_matched_by_package_data() -> None:
    data = {
        package.removeprefix("mlx_serving."): [pattern.strip() for pattern in patterns.split(",")]
        for package, patterns in setup_cfg()["options.package_data"].items()
    }
    for folder in FOLDERS:
        packed = {path for pattern in data[folder] for path in (ROOT / folder).glob(pattern)}
        files = {path for path in (ROOT / folder).rglob("*") if path.suffix in (".yaml", ".pyi", ".typed")}
        assert files == packed


def test_the_installed_version_is_that_of_setup_cfg() -> None:
    assert importlib.metadata.version("mlx-serving") == setup_cfg()["metadata"]["version"]


def test_pyproject_leaves_metadata_to_setup_cfg() -> None:
    tables = re.findall(r"^\[([^\]]+)\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert [table for table in tables if table == "project" or table.startswith("tool.setuptools")] == []


@pytest.mark.parametrize("tool", ["tools/run", "tools/test", ".ci/run"])
def test_the_commands_are_executable_and_stop_at_the_first_failure(tool: str) -> None:
    path = ROOT / tool
    assert path.stat().st_mode & 0o111
    assert "set -euo pipefail" in path.read_text(encoding="utf-8")
