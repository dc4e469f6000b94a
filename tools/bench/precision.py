"""The peers' weights in the precision in which this server computes.

MLX's CPU back end computes half precision many times slower than float32, so this server takes float32
there. A peer that kept to the stored float16 would lose by that alone, and its greedy answers would be those
of other numbers: it gets a float32 copy of the same folder.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def peer_folder(folder: Path) -> Iterator[Path]:
    """`folder` itself, or on the CPU back end a float32 copy of it that lives as long as the context."""
    with tempfile.TemporaryDirectory(prefix="bench-") as parent:
        copy = Path(parent) / folder.name
        command = [sys.executable, str(Path(__file__).parent), "float32", str(folder), str(copy)]
        subprocess.run(command, check=True)
        yield copy if copy.exists() else folder


def copy_in_float32(folder: Path, copy: Path) -> None:
    """Make the copy where it is wanted: on the CPU back end, of a folder that holds half precision."""
    import mlx.core as mx

    half = (mx.float16, mx.bfloat16)
    weights: dict[str, Any] = {file.name: mx.load(str(file)) for file in folder.glob("*.safetensors")}
    halves = any(array.dtype in half for file in weights.values() for array in file.values())
    if mx.default_device().type != mx.DeviceType.cpu or not halves:
        return
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    for name, arrays in weights.items():
        cast = {key: each.astype(mx.float32) if each.dtype in half else each for key, each in arrays.items()}
        mx.save_safetensors(str(copy / name), cast, metadata={"format": "mlx"})
    _say_float32(copy / "config.json")


def _say_float32(path: Path) -> None:
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "torch_dtype": "float32"}))
