"""Fetches a model from the Hugging Face hub; huggingface_hub resumes interrupted files by itself."""

from __future__ import annotations

import fnmatch
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_serving.actors.errors import ModelLoadFailed, ModelNotFound, ServingError
from mlx_serving.actors.models.progress import Progress
from mlx_serving.actors.models.storage import reserve

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

PATTERNS = (
    "*.json", "*.jsonl", "*.jinja", "*.txt", "*.model", "*.tiktoken", "model*.safetensors",
)  # fmt: skip
"""What MLX needs. Python files are left out: code from strangers is not run."""


def fetch_snapshot(repository: str, folder: Path, progress: Progress) -> None:
    """Fills `folder` with the repository's files; what is there already is not fetched again.

    ModelNotFound for an unknown or private repository, ModelLoadFailed when the hub cannot be reached or the
    repository holds nothing that MLX loads.
    """
    try:
        from huggingface_hub.errors import RepositoryNotFoundError
    except ImportError as error:
        raise ModelLoadFailed("pulling from the hub needs the package huggingface_hub: install it") from error
    try:
        _fetch(repository, folder, progress)
    except ServingError:
        raise
    except RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"the hub has no model {repository}, or it is private: check the name or log in", model=repository
        ) from error
    except Exception as error:  # the hub's client also lets the errors of its HTTP library through
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ModelLoadFailed(
            f"{repository} cannot be fetched from the hub: {error}. What has arrived is kept for the next pull"
        ) from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)


def _fetch(repository: str, folder: Path, progress: Progress) -> None:
    from huggingface_hub import HfApi

    progress("locate", 0, None)
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    info = api.model_info(repository, files_metadata=True)
    total = _checked_size(repository, info.siblings or [])
    arrived = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    reserve(folder, total - arrived)
    api.snapshot_download(
        repository,
        revision=info.sha,
        allow_patterns=list(PATTERNS),
        local_dir=folder,
        cache_dir=folder / ".cache",
        tqdm_class=_bar(total, progress),
    )


def _checked_size(repository: str, files: list[RepoSibling]) -> int:
    """Bytes of the files to fetch."""
    wanted = [file for file in files if any(fnmatch.fnmatch(file.rfilename, form) for form in PATTERNS)]
    if not any(file.rfilename.endswith(".safetensors") for file in wanted):
        raise ModelLoadFailed(
            f"{repository} holds no model*.safetensors; a GGUF file can be downloaded and imported instead"
        )
    return sum(file.size or 0 for file in wanted)


def _bar(total: int, progress: Progress) -> type[Any]:
    """A tqdm that hands counts of bytes to `progress` and prints nothing."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        most = 0
        """Of all bars: one counts bytes received, another bytes written."""

        def __init__(self, *arguments: Any, **settings: Any) -> None:
            settings.pop("name", None)
            self.counts_bytes = settings.get("unit") == "B"
            self.done = int(settings.get("initial") or 0)
            super().__init__(*arguments, **{**settings, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            self.done += int(n or 0)
            if self.counts_bytes and self.done > Bar.most:
                Bar.most = self.done
                progress("download", min(self.done, total), total)
            return None

    return Bar
