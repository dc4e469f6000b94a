"""Fetches a model from the Hugging Face hub.

huggingface_hub finds the files and the user's token. The bytes are downloaded here, because that library
throws a file away when its download is interrupted.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_serving.actors.errors import ModelLoadFailed, ModelNotFound
from mlx_serving.actors.models.download import fetch
from mlx_serving.actors.models.progress import Progress
from mlx_serving.actors.models.storage import reserve

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

_WANTED = re.compile(
    r"model[\w.-]*\.safetensors|[\w-][\w.-]*\.(json|jsonl|jinja|txt|model|tiktoken)|additional_chat_templates/[\w-]+\.jinja"
)
"""What MLX needs. Python files are left out: code from strangers is not run."""


def fetch_snapshot(repository: str, work: Path, progress: Progress) -> Path:
    """The folder below `work` that holds the repository's newest revision, going on with what is there of it.

    ModelNotFound for an unknown or private repository, ModelLoadFailed when the hub cannot be reached or the
    repository holds nothing that MLX loads.
    """
    progress("locate", 0, None)
    info = _model_info(repository)
    files = [file for file in info.siblings or [] if _WANTED.fullmatch(file.rfilename)]
    if not any(file.rfilename.endswith(".safetensors") for file in files):
        raise ModelLoadFailed(
            f"{repository} holds no model*.safetensors; a GGUF file can be downloaded and imported instead"
        )
    folder = work / (info.sha or "main")
    folder.mkdir(exist_ok=True)
    _download(repository, info.sha, files, folder, progress)
    return folder


def _model_info(repository: str) -> ModelInfo:
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import RepositoryNotFoundError
    except ImportError as error:
        raise ModelLoadFailed("pulling from the hub needs the package huggingface_hub: install it") from error
    try:
        return HfApi(endpoint=os.environ.get("HF_ENDPOINT")).model_info(repository, files_metadata=True)
    except RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"the hub has no model {repository}, or keeps it private: check the name or log in",
            model=repository,
        ) from error
    except Exception as error:  # also those of the HTTP library below it
        raise ModelLoadFailed(f"the hub cannot be asked for {repository}: {error}") from error


def _download(
    repository: str, revision: str | None, files: list[RepoSibling], folder: Path, progress: Progress
) -> None:
    """Fetches the files one after the other; progress counts the bytes of all."""
    from huggingface_hub import get_token, hf_hub_url

    token = get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    total = sum(file.size or 0 for file in files)
    arrived = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    reserve(folder, total - arrived)
    done = 0
    for file in files:
        target = folder / file.rfilename
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            url = hf_hub_url(repository, file.rfilename, revision=revision, endpoint=os.environ.get("HF_ENDPOINT"))
            digest = file.lfs.sha256 if file.lfs else None
            fetch(url, target, digest, _part_of(progress, done, total), headers)
        done += file.size or 0


def _part_of(progress: Progress, before: int, whole: int) -> Progress:
    """Reports one file's progress as that of all files."""

    def report(phase: str, done: int, total: int | None) -> None:
        progress(phase, min(before + done, whole), whole)

    return report
