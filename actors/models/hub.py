"""Fetches a model from the Hugging Face hub; huggingface_hub resumes interrupted files by itself."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from mlx_serving.actors.errors import ModelLoadFailed, ModelNotFound
from mlx_serving.actors.models.progress import Progress
from mlx_serving.actors.models.storage import reserve

PATTERNS = [
    "*.json", "*.jsonl", "*.jinja", "*.txt", "*.model", "*.tiktoken", "model*.safetensors",
    "additional_chat_templates/*.jinja",
]  # fmt: skip
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
        raise ModelLoadFailed(
            "pulling from the hub needs the package huggingface_hub: pip install it"
        ) from error
    download = {"allow_patterns": PATTERNS, "local_dir": folder, "endpoint": os.environ.get("HF_ENDPOINT")}
    try:
        progress("locate", 0, None)
        wanted = snapshot_download(repository, dry_run=True, **download)
        names = [item.filename for item in wanted]
        if not any(name.endswith(".safetensors") for name in names):
            raise ModelLoadFailed(
                f"{repository} holds no safetensors; a GGUF file can be downloaded and imported"
            )
        reserve(folder, sum(item.file_size for item in wanted if item.will_download))
        snapshot_download(repository, tqdm_class=_bar(progress), **download)
    except RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"the hub has no model {repository}, or it is private: check the name, or log in"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ModelLoadFailed(f"{repository} cannot be fetched from the hub: {error}") from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)


def _bar(progress: Progress) -> type[Any]:
    """A tqdm that hands its counts of bytes to `progress` and prints nothing."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):  # type: ignore[misc, type-arg]
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            settings["disable"] = True
            self.counts_bytes = settings.get("unit") == "B"
            self.done = int(settings.get("initial") or 0)
            super().__init__(*arguments, **settings)

        def update(self, n: float | None = 1) -> bool | None:
            self.done += int(n or 0)
            if self.counts_bytes:
                progress("download", self.done, int(self.total) if self.total else None)
            return None

    return Bar
