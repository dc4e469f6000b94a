"""Turns one GGUF file into a folder that mlx_lm loads: weights, config.json, tokenizer and chat template."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import attrs

from mlx_serving.actors.errors import InvalidParameter
from mlx_serving.actors.models.gguf_architectures import Config, config_of, dimensions_of, family_of, match
from mlx_serving.actors.models.gguf_file import GGUFFile
from mlx_serving.actors.models.gguf_tensors import Conversion, plan, write_weights
from mlx_serving.actors.models.gguf_tokenizer import Vocabulary, write_tokenizer
from mlx_serving.actors.models.progress import Progress, silent
from mlx_serving.actors.models.record import Quantization

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
DEFAULT_GROUP_SIZE = 64


def chosen_width(bits: int | None, group_size: int | None) -> Quantization | None:
    """What the caller asks for; None keeps close to the file. InvalidParameter names what MLX cannot hold."""
    if bits is None and group_size is None:
        return None
    if bits is None:
        raise InvalidParameter("a group size needs bits as well", field="group_size")
    if bits not in BITS:
        raise InvalidParameter(f"bits must be one of {BITS}, not {bits}", field="bits")
    if group_size is not None and group_size not in GROUP_SIZES:
        raise InvalidParameter(f"group_size must be one of {GROUP_SIZES}, not {group_size}", field="group_size")
    return Quantization(bits, group_size or DEFAULT_GROUP_SIZE)


def half_precision_pays() -> bool:
    """Not on MLX's CPU back end: its quantised product is forty times slower in float16 than in float32."""
    if sys.platform != "linux":
        return True
    installed = {str(each.name).lower() for each in metadata.distributions()}
    return any(name.startswith("mlx-cuda") for name in installed)


def convert(
    path: Path,
    folder: Path,
    width: Quantization | None = None,
    progress: Progress = silent,
    reserve: Callable[[int], None] = lambda size: None,
    half: bool | None = None,
) -> None:
    """Fills the existing `folder`. ModelLoadFailed says what is wrong with the file or not supported.

    `reserve` is told the bytes that will be written before the first of them, and may refuse. `half` keeps
    floating point numbers in half precision; by default where MLX computes with it (`half_precision_pays`).
    """
    half = half_precision_pays() if half is None else half
    with GGUFFile(path) as file:
        family = family_of(file)
        sizes = dimensions_of(file)
        conversions = plan(file, family, match(file, family, sizes), width, half)
        config = config_of(file, family, sizes)
        reserve(sum(conversion.bytes for conversion in conversions))
        vocabulary = write_tokenizer(file.fields, folder)
        config |= _token_ids(vocabulary) | _quantization(conversions) | {"torch_dtype": _TYPES[conversions[0].dtype]}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        write_weights(file, conversions, folder, progress)


_TYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}


def _token_ids(vocabulary: Vocabulary) -> Config:
    ids = {f"{name}_id": id for name, id in vocabulary.named.items() if name in ("bos_token", "pad_token")}
    return {**ids, "eos_token_id": vocabulary.ends}


def _quantization(conversions: list[Conversion]) -> Config:
    """The width that holds most weights, then the layers that differ from it by their names."""
    weights: dict[Quantization, int] = {}
    for conversion in conversions:
        if conversion.quantization is not None:
            size = conversion.source.rows * conversion.source.columns
            weights[conversion.quantization] = weights.get(conversion.quantization, 0) + size
    if not weights:
        return {}
    usual = max(weights, key=lambda width: weights[width])
    setting: dict[str, Any] = attrs.asdict(usual)
    for conversion in conversions:
        if conversion.quantization not in (None, usual):
            setting[conversion.module] = attrs.asdict(conversion.quantization)
    return {"quantization": setting, "quantization_config": setting}
