"""Takes in folders that others made: links or copies their files, and completes the tokenizer."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from mlx_serving.actors.errors import ModelLoadFailed
from mlx_serving.actors.models.progress import Progress
from mlx_serving.actors.models.storage import reserve

_SUFFIXES = {".json", ".safetensors", ".jinja", ".txt", ".model", ".tiktoken", ".jsonl"}
_CONVERSION_SECONDS = 300.0
_CONVERSION = (
    "import sys; from transformers import AutoTokenizer;"
    "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], local_files_only=True);"
    "tokenizer.backend_tokenizer.save(sys.argv[1] + '/tokenizer.json')"
)


def gather(source: Path, target: Path, copy: bool, progress: Progress) -> None:
    """Links (or copies) the files that make a model; progress counts bytes."""
    templates = source / "additional_chat_templates"
    files = [path for path in [*source.iterdir(), *templates.glob("*")] if path.suffix in _SUFFIXES and path.is_file()]
    total, done = sum(path.stat().st_size for path in files), 0
    if copy:
        reserve(target, total)
    for path in files:
        place = target / path.relative_to(source)
        place.parent.mkdir(exist_ok=True)
        if copy:
            shutil.copyfile(path, place)
        else:
            place.symlink_to(path.resolve())
        done += path.stat().st_size
        progress("copy" if copy else "link", done, total)


def complete_tokenizer(folder: Path) -> None:
    """Builds tokenizer.json from older forms with transformers, which gets a process of its own."""
    if (folder / "tokenizer.json").exists():
        return
    command = [sys.executable, "-c", _CONVERSION, str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_CONVERSION_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise ModelLoadFailed(f"building tokenizer.json took longer than {_CONVERSION_SECONDS:.0f} s") from error
    if done.returncode or not (folder / "tokenizer.json").exists():
        reason = done.stderr.strip().splitlines()[-1:] or ["transformers gave no reason"]
        raise ModelLoadFailed(
            f"the folder has no tokenizer.json and none can be built from its other files: {reason[0].rstrip('.')}. "
            "Save the tokenizer with transformers' save_pretrained and add its files"
        )
