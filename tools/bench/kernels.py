"""What the native kernels give: MLX as its wheel is, this engine without them and with them, and llama.cpp, in turns.

Everything is in process, without HTTP; each variant has a process of its own in every round.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import attrs

from mlx_serving.actors.models.safetensors_file import read_header
from mlx_serving.native.cores import usable_cores

VARIANTS = ("stock", "pure", "native")
_LARGE = 200_000_000
"""Bytes of weights a token reads from which only the native kernels are measured: the others take minutes a round."""


@attrs.frozen
class LlamaBench:
    """llama.cpp's own benchmark on a GGUF file."""

    binary: Path
    gguf: Path

    def measure(self) -> dict[str, float]:
        """Tokens a second of one row and of a prompt of 512."""
        options = ("-t", str(usable_cores()), "-p", "512", "-n", "96", "-r", "2", "-o", "json")
        command = [str(self.binary), "-m", str(self.gguf), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rates = {entry["n_prompt"]: entry["avg_ts"] for entry in json.loads(done.stdout)}
        return {"1": rates[0], "prompt": rates[512]}


def kernels(folder: Path, rounds: int, llama: LlamaBench | None) -> dict[str, Any]:
    """Rates of every contestant in every round; those of the native kernels with the memory bandwidth beside them."""
    rates: dict[str, list[dict[str, Any]]] = defaultdict(list)
    weights = bytes_a_token(folder)
    variants = VARIANTS if weights < _LARGE else ("native",)
    for number in range(rounds):
        for variant in variants:
            if variant != "stock" or number == 0:  # it takes minutes
                rates[variant].append(_in_process(variant, folder))
        if llama is not None:
            rates["llama.cpp"].append(llama.measure())
    return {
        "model": folder.name,
        "gguf": llama.gguf.name if llama is not None else None,
        "cores": usable_cores(),
        "bytes_a_token": weights,
        "is_dense": "quantization" not in json.loads((folder / "config.json").read_text()),
        "rates": dict(rates),
    }


def _in_process(variant: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).parent), "variant", variant, str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def bytes_a_token(folder: Path) -> int:
    """Weights that the kernels read for one token: all layers and the output layer, scales in half precision."""
    tensors = [tensor for path in sorted(folder.glob("*.safetensors")) for tensor in read_header(path)[0]]
    is_tied = not any(tensor.name.startswith("lm_head.") for tensor in tensors)
    total = 0
    for tensor in tensors:
        if "embed_tokens" in tensor.name and not is_tied:
            continue
        is_scale = tensor.dtype == "F32" and tensor.name.endswith((".scales", ".biases"))
        total += tensor.bytes // 2 if is_scale else tensor.bytes
    return total
