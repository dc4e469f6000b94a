"""Fetches a model from the Hugging Face hub; huggingface_hub resumes interrupted files by itself."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_serving.actors.errors import ModelLoadFailed, ModelNotFound
from mlx_serving.actors.models.progress import Progress
from mlx_serving.actors.models.storage import reserve

if TYPE_CHECKING:
    from huggingface_hub import DryRunFileInfo

PATTERNS = (
    "*.json", "*.jsonl", "*.jinja", "*.txt", "*.model", "*.tiktoken", "model*.safetensors",
    "additional_chat_templates/*.jinja",
)  # fmt: skip
"""What MLX needs. Python files are left out: code from strangers is not run."""


def fetch_snapshot(repository: str, folder: Path, progress: Progress) -> None:
    """Fills `folder` with the repository's files; files that are there and complete are not fetched again.

    ModelNotFound for an unknown or private repository, ModelLoadFailed when the hub cannot be reached or the
    repository holds nothing that MLX loads.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError as error:
        raise ModelLoadFailed("pulling from the hub needs the package huggingface_hub: install it") from error
    download: Callable[..., Any] = functools.partial(
        snapshot_download,
        repository,
        allow_patterns=list(PATTERNS),
        local_dir=folder,
        cache_dir=folder / ".cache",
        endpoint=os.environ.get("HF_ENDPOINT"),
    )
    try:
        progress("locate", 0, None)
        _check(repository, folder, download(dry_run=True))
        download(tqdm_class=_bar(progress))
    except RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"the hub has no model {repository}, or it is private: check the name or log in", model=repository
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise _unreachable(repository, error) from error
    except Exception as error:
        if _is_network(error):
            raise _unreachable(repository, error) from error
        raise
    shutil.rmtree(folder / ".cache", ignore_errors=True)


def _check(repository: str, folder: Path, files: list[DryRunFileInfo]) -> None:
    if not any(file.filename.endswith(".safetensors") for file in files):
        raise ModelLoadFailed(
            f"{repository} holds no model*.safetensors; a GGUF file can be downloaded and imported instead"
        )
    reserve(folder, sum(file.file_size for file in files if file.will_download and file.file_size))


def _unreachable(repository: str, error: Exception) -> ModelLoadFailed:
    return ModelLoadFailed(
        f"{repository} cannot be fetched from the hub: {error}. What has arrived is kept for the next pull"
    )


def _is_network(error: Exception) -> bool:
    """The hub's client raises the errors of its HTTP library, whose name changes between versions."""
    return type(error).__module__.partition(".")[0] in (
        "httpx",
        "httpx2",
        "httpcore2",
        "httpcore",
        "requests",
    )


def _bar(progress: Progress) -> type[Any]:
    """A tqdm that hands counts of bytes to `progress` and prints nothing."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        most = 0

        def __init__(self, *arguments: Any, **settings: Any) -> None:
            settings.pop("name", None)
            self.counts_bytes = settings.get("unit") == "B"
            self.done = int(settings.get("initial") or 0)
            super().__init__(*arguments, **{**settings, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            self.done += int(n or 0)
            if self.counts_bytes and self.done > Bar.most:
                Bar.most = self.done  # one bar counts bytes received, another bytes written
                progress("download", self.done, int(self.total) if self.total else None)
            return None

    return Bar
