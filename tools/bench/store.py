"""The folder of a model, asked from the product's own command line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tools.bench.startup import command


def model_folder(model: str) -> Path:
    """Fetch `model` if need be; the folder that mlx_lm loads as it stands. A folder is taken as it is."""
    if Path(model).is_dir():
        return Path(model).resolve()
    subprocess.run([*command(), "models", "pull", model], check=True)
    shown = subprocess.run([*command(), "models", "show", model, "--json"], check=True, capture_output=True)
    return Path(json.loads(shown.stdout)["path"])
